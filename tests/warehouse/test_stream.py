"""Server-sent events: frames in bounded memory, and a connection that comes back where it was cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from warehouse.stream.sse import EventStream, StreamError, bounded, decoded, is_usable_id, read_frames
from warehouse.stream.wikidata_http import Backoff

URL = "https://stream.example/v2/stream/recentchange"


def frames(text: str, max_chars: int = 1000) -> list[tuple[str, str, str]]:
    return [(f.event, f.id, f.data) for f in read_frames([text], max_chars)]


# ---------------------------------------------------------------- frames


def test_comments_retry_and_empty_frames_are_left_out() -> None:
    text = ':ok\n\n:\n\nevent: message\nid: a\ndata: {"x":\ndata: 1}\n\nretry: 5000\n\ndata:\n\nevent: error\ndata: e\n\n'
    assert frames(text) == [("message", "a", '{"x":\n1}'), ("error", "a", "e")]


def test_a_frame_that_was_cut_off_is_no_frame() -> None:
    assert frames('id: a\ndata: 1\n\nid: b\ndata: {"truncated') == [("message", "a", "1")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_all_line_ends_are_read_wherever_the_chunks_are_cut(end: str) -> None:
    text = end.join([":ok", "", "id: a", "data: 1", "data: 2", "", "id: b", "data: 3", "", ""])
    for size in range(1, len(text)):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert [(f.id, f.data) for f in read_frames(pieces, 1000)] == [("a", "1\n2"), ("b", "3")], size


def test_a_wrong_byte_and_a_character_cut_in_two_are_survived() -> None:
    data = "id: a\ndata: é\n\n".encode()
    pieces = [data[i : i + 1] for i in range(len(data))] + [b"id: b\ndata: \xff\n\n"]
    assert [f.data for f in read_frames(decoded(pieces))] == ["é", "\ufffd"]


@pytest.mark.parametrize("size", [1, 7, 64, 5000])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_an_endless_line_is_cut_and_the_frames_around_it_are_whole(size: int, end: str) -> None:
    lines = ["id: a", "data: 1", "", "id: b", "data: " + "x" * 5000, "", "id: c", "data: 3", "", ""]
    text = end.join(lines)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    found = [(f.id, f.data[:3], len(f.data) <= 200) for f in read_frames(pieces, 200)]
    assert found == [("a", "1", True), ("b", "xxx", True), ("c", "3", True)]


def test_a_frame_of_endless_lines_does_not_grow() -> None:
    pieces = [f"data: {i}\n" for i in range(10_000)] + ["\nid: z\ndata: 1\n\n"]
    passed = list(bounded(pieces, 500))
    assert sum(map(len, passed)) < 600
    assert [f.id for f in read_frames(pieces, 500)] == ["", "z"]


def test_many_short_frames_never_reach_the_limit() -> None:
    # Chunks that end between the two line ends of a blank line.
    pieces = ["id: a\ndata: 1\n", *["\nid: a\ndata: 1\n"] * 500, "\n"]
    assert [f.data for f in read_frames(pieces, 60)] == ["1"] * 501


def test_an_id_that_no_header_can_hold_is_not_used() -> None:
    assert is_usable_id('[{"topic":"a","offset":1}]')
    assert not any(map(is_usable_id, ["", "é", "a\tb", "x" * 5000]))


# ---------------------------------------------------------------- the connection


Answer = httpx.Response | Exception


class Server:
    """Gives its answers in order, then refuses connections; keeps what was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.pop(0) if self.answers else httpx.ConnectError("nobody there")
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def last_ids(self) -> list[str | None]:
        return [request.headers.get("last-event-id") for request in self.asked]


def answer(*ids: str, status: int = 200, cut: Exception | None = None, **headers: str) -> httpx.Response:
    def body() -> Iterator[bytes]:
        yield b":ok\n\n"
        for name in ids:
            yield f"id: {name}\ndata: {name}\n\n".encode()
        if cut is not None:
            yield b'id: half\ndata: {"cu'
            raise cut

    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers={"content-type": "text/event-stream; charset=utf-8", **headers}, content=body())


def connect(server: Server, on_wait: Callable[[bool], bool] = lambda connected: False) -> tuple[EventStream, list[float]]:
    """A stream that gives up after three failures in a row, and the pauses it takes (nobody waits them)."""
    pauses: list[float] = []
    client = httpx.Client(transport=httpx.MockTransport(server))
    backoff = Backoff(base_s=1.0, max_s=8.0, rng=random.Random(0))
    stream = EventStream(client, URL, on_wait=on_wait, backoff=backoff, max_failures=3, sleep=pauses.append)
    monkey: Any = stream
    monkey._pause = pauses.append
    return stream, pauses


def all_ids(stream: EventStream, **options: str) -> list[str]:
    found = []
    try:
        for frame in stream.frames(**options):
            found.append(frame.id)
    except StreamError:
        found.append("gave up")
    return found


def test_a_cut_connection_goes_on_behind_the_last_whole_frame() -> None:
    server = Server(
        answer("a", "b", cut=httpx.ReadError("cut")), answer("c", cut=httpx.RemoteProtocolError("cut")), answer("d")
    )
    stream, _ = connect(server)
    assert all_ids(stream) == ["a", "b", "c", "d", "gave up"]
    assert server.last_ids[:4] == [None, "b", "c", "d"]


def test_since_is_asked_only_until_there_is_an_id() -> None:
    server = Server(answer("a"), answer("b"))
    all_ids(connect(server)[0], since="2026-10-01T00:00:00Z")
    assert [dict(request.url.params) for request in server.asked[:2]] == [{"since": "2026-10-01T00:00:00Z"}, {}]


def test_retry_after_is_kept_and_other_failures_double_the_pause() -> None:
    server = Server(answer(status=429, retry_after="1.5"), answer(status=503), httpx.ConnectError("refused"), answer("a"))
    stream, pauses = connect(server)
    assert next(stream.frames()).id == "a"
    assert 1.5 <= pauses[0] <= 1.65 and 1.0 <= pauses[1] <= 2.0 and 2.0 <= pauses[2] <= 4.0


def test_a_frame_ends_the_row_of_failures() -> None:
    failures = [httpx.ConnectError("refused")] * 3
    stream, _ = connect(Server(*failures, answer("a"), *failures[1:], answer("b")))
    assert all_ids(stream) == ["a", "b", "gave up"]


def test_after_too_many_failures_the_last_one_is_reported() -> None:
    server = Server(*[answer(status=503) for _ in range(5)])
    stream, _ = connect(server)
    with pytest.raises(StreamError, match="4 attempts brought nothing; the last one: HTTP 503"):
        next(stream.frames())
    assert len(server.asked) == 4


def test_a_refusal_for_good_is_not_tried_again() -> None:
    server = Server(answer(status=400), answer("a"))
    with pytest.raises(StreamError, match=r"HTTP 400.*--since"):
        next(connect(server)[0].frames("an old id"))
    assert len(server.asked) == 1


def test_a_page_instead_of_a_stream_is_a_failure_that_may_pass() -> None:
    page = httpx.Response(200, headers={"content-type": "text/html"}, content=b"<p>data: 1</p>")
    stream, _ = connect(Server(page, answer("a")))
    assert all_ids(stream) == ["a", "gave up"]


def test_its_user_can_end_it_while_it_waits() -> None:
    waits = iter([False, False, False, True])
    stream, _ = connect(Server(answer("a"), answer("b")), on_wait=lambda connected: next(waits, True))
    assert all_ids(stream) == ["a"]


def test_a_pause_is_slept_in_pieces_and_ends_with_the_stream() -> None:
    slept: list[float] = []
    client = httpx.Client(transport=httpx.MockTransport(Server()))
    stream = EventStream(client, URL, on_wait=lambda connected: len(slept) >= 3, sleep=slept.append)
    stream._pause(60.0)
    assert len(slept) == 3 and max(slept) <= 1.0
