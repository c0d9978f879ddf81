"""Whatever comes over the wire: no exception, bounded memory, nothing about persons.

    ERRATA_FUZZ=100000 pytest tests/warehouse/test_fuzz_stream.py

makes that many broken streams and as many broken events from seeds; the suite makes a few hundred. Beside them stand
structured inputs, which hypothesis can shrink but makes a hundred times slower.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.warehouse.test_events import EDIT
from warehouse.database.connection import Warehouse
from warehouse.ingest.live_ingest import Filters, FrameReader
from warehouse.ingest.stream_tables import Cursor, store_delivery
from warehouse.stream.documents import fetch_labels
from warehouse.stream.events import ITEM, MAX_KEY_CHARS, Refused, StreamEvent, parse_event, read_summary
from warehouse.stream.sse import bounded, decoded, is_usable_id, read_frames
from warehouse.stream.wikidata_http import WikidataClient

INPUTS = int(os.environ.get("ERRATA_FUZZ", "400"))
#: Inputs of one seed.
BLOCK = 100
LIMIT = 400
SECRET = "Jane Doe of Example Street"

CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
fuzz = settings(max_examples=150, deadline=None, database=None, suppress_health_check=CHECKS, derandomize=True)
some = settings(fuzz, max_examples=50)
blocks = settings(fuzz, max_examples=max(1, INPUTS // BLOCK), derandomize=INPUTS <= 1000)
seeds = st.integers(0, 2**64 - 1)

SCRAPS = [
    b"data: ", b"data:", b"data", b"id: ", b"id:", b"id", b"event: error", b"event: message", b"retry: 99999999999999999999",
    b"retry: -1", b":", b":ok", b"\n", b"\n\n", b"\r\n", b"\r", b"\r\n\r\n", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"x" * 90, b'{"meta":{"domain":"canary"}}', json.dumps(EDIT).encode(), b'[{"topic":"a","offset":-1}]', b'{"meta":' * 50,
]  # fmt: skip
chunks = st.lists(st.one_of(st.sampled_from(SCRAPS), st.binary(max_size=40)), max_size=40)

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-5, 10**13), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["wikidatawiki", "Q42", "edit", "new", "log", "delete", "canary", "2026-10-01T22:01:11.381Z", "~2026-1-1",
                     SECRET]),
)  # fmt: skip
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)
FIELDS = [*EDIT, "log_type", "log_action", "log_params", "title_url", "server_name", "id"]
VALUES: list[Any] = [
    None, True, -1, 0, 2**63, 10**400, 1e308, 0.5, "", "Q42", "q42", "Q0", "Property:P6", "wikidatawiki", "dewiki", "canary",
    "edit", "new", "log", "delete", "restore", SECRET, "~2026-1-1", "::1", "9" * 5000, [], [[]], {}, {"id": None},
    {"old": "1", "new": 2},
    "2026-10-01T22:01:11.381Z", "9999-99-99", 1790892071, 1790892071000, -(2**63), "/* a:b */", "\x00", "\ud800", 120, 146,
]  # fmt: skip
META = ["id", "dt", "domain", "uri", "stream", "topic", "partition", "offset"]
LINKS = ["/* ", " */ ", "*/", "/*", "wbsetclaim-update", "undo", ":2||1", ":0||77|", SECRET, "[[Property:P19]]",
         "[[Property:P0]]", ": [[Q42]]", "[[", "]]", "|", ": ", ", ", "\n", "/* a:" * 20]  # fmt: skip
summaries = st.lists(st.one_of(st.sampled_from(LINKS), st.text(max_size=8)), max_size=12).map("".join)


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    """The edit with some fields made of anything, some left out, and a name where names stand."""
    event = {**EDIT, "user": SECRET, "comment": draw(summaries)}
    event |= draw(st.dictionaries(st.sampled_from(FIELDS), junk, max_size=4))
    if isinstance(event["meta"], dict):
        event["meta"] = {**event["meta"], **draw(st.dictionaries(st.sampled_from(META), junk, max_size=3))}
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=3)):
        event.pop(name, None)
    return event


def check(found: StreamEvent | Refused) -> None:
    """What every caller relies on."""
    if isinstance(found, Refused):
        assert len(found.sentence) < 400
        return
    assert 0 < len(found.key) <= MAX_KEY_CHARS + 32 and found.key.isascii()
    assert len(found.why) <= 100 and len(found.summary) < 400
    if found.action != "drop":
        assert ITEM.fullmatch(found.entity_id)
    for revision in (found.rev_old, found.rev_new):
        assert revision is None or 0 <= revision < 2**63


@cache
def store() -> Warehouse:
    return Warehouse.open(":memory:")


def check_stream(pieces: Sequence[bytes]) -> None:
    text = list(decoded(pieces))
    kept = list(bounded(text, LIMIT))
    assert sum(map(len, kept)) <= sum(map(len, text))
    reader = FrameReader(Filters(properties={"P19"}), Cursor(stream="s"))
    for frame in read_frames(text, LIMIT):
        assert 0 < len(frame.data) <= LIMIT
        reader.take(frame)
    delivery = reader.whole()
    assert delivery.frames == reader.frames and len(delivery.recent) <= 256
    assert delivery.last_event_id == "" or is_usable_id(delivery.last_event_id)
    for event in delivery.events:
        check(event)


@blocks
@given(seeds)
def test_fuzz_blocks_of_streams(seed: int) -> None:
    chances = random.Random(seed)
    for _ in range(BLOCK):
        whole = b"".join(_scrap(chances) for _ in range(chances.randrange(12)))
        size = chances.choice((2, 17, 64, 300, 10_000))
        check_stream([whole[i : i + size] for i in range(0, len(whole), size)])


def _scrap(chances: random.Random) -> bytes:
    scrap = chances.choice(SCRAPS) if chances.random() < 0.8 else chances.randbytes(chances.randrange(12))
    if scrap and chances.random() < 0.2:
        at = chances.randrange(len(scrap))
        scrap = scrap[:at] + chances.randbytes(1) + scrap[at + chances.randrange(2) :]
    return scrap


@blocks
@given(seeds)
def test_fuzz_blocks_of_events(seed: int) -> None:
    """Events with values swapped for others, and their text with characters changed, cut or doubled."""
    chances = random.Random(seed)
    for _ in range(BLOCK):
        event: dict[str, Any] = {**EDIT, "meta": dict(EDIT["meta"]), "user": SECRET, "revision": dict(EDIT["revision"])}
        event["comment"] = "".join(chances.choices(LINKS, k=chances.randrange(8)))
        for _ in range(chances.randrange(4)):
            part = chances.choice((event, event, event.get("meta"), event.get("revision")))
            if isinstance(part, dict):
                part[chances.choice([*FIELDS, *META, "old", "new"])] = deepcopy(chances.choice(VALUES))
        text = json.dumps(event)
        found = parse_event(text)
        check(found)
        names = (found.why, found.wiki, found.autocomment, found.summary) if isinstance(found, StreamEvent) else ()
        assert not any(SECRET in name for name in names)
        at, end = sorted(chances.randrange(len(text)) for _ in range(2))
        check(
            parse_event(text[:at] + chances.choice(("", text[at:end] * 2, "\x00", "\ud800", "\u202e", "9" * 400)) + text[end:])
        )


@fuzz
@given(chunks)
def test_fuzz_bytes_of_a_stream(pieces: list[bytes]) -> None:
    check_stream(pieces)


@fuzz
@given(chunks, st.integers(1, 7))
def test_fuzz_frames_are_the_same_however_the_bytes_are_cut(pieces: list[bytes], size: int) -> None:
    whole = b"".join(pieces)
    cut = [whole[i : i + size] for i in range(0, len(whole), size)]
    expected = [(f.event, f.id, f.data) for f in read_frames(decoded([whole]), 10**6)]
    assert [(f.event, f.id, f.data) for f in read_frames(decoded(cut), 10**6)] == expected


@fuzz
@given(events())
def test_fuzz_events(event: dict[str, Any]) -> None:
    found = parse_event(json.dumps(event))
    check(found)
    if isinstance(found, StreamEvent):
        held = (found.why, found.wiki, found.autocomment, found.editor_class, found.summary)
        assert not any(SECRET in text for text in held)


@fuzz
@given(
    st.one_of(
        st.text(max_size=200), junk.map(json.dumps), st.binary(max_size=200).map(lambda b: b.decode("utf-8", "surrogateescape"))
    )
)
def test_fuzz_data_of_a_frame(data: str) -> None:
    check(parse_event(data))


@fuzz
@given(summaries)
def test_fuzz_summaries(comment: str) -> None:
    found = read_summary(comment)
    assert len(found.text) < 400 and SECRET not in found.text


@some
@given(st.lists(st.one_of(events().map(json.dumps), st.text(max_size=40), junk.map(json.dumps)), max_size=8))
def test_fuzz_whatever_was_read_can_be_stored(data: list[str]) -> None:
    wire = "".join(
        f"id: {i}\n" + "".join(f"data: {line}\n" for line in text.splitlines()) + "\n" for i, text in enumerate(data)
    )
    reader = FrameReader(Filters(), Cursor(stream="s"))
    for frame in read_frames([wire]):
        reader.take(frame)
    held = len({event.key for event in reader.delivery.events})
    assert store_delivery(store(), "s", "n", reader.whole()) == held
    store().execute("DELETE FROM stream_events")


@some
@given(st.one_of(junk.map(json.dumps), st.text(max_size=40), st.sampled_from(['{"entities": {"Q1": 5}}', '{"error": 7}'])))
def test_fuzz_answers_of_the_api(body: str) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body.encode("utf-8", "replace")))
    client = WikidataClient(httpx.Client(transport=transport), "https://www.wikidata.org", retries=0, sleep=lambda _: None)
    try:
        labels, _ = fetch_labels(client, ["Q1", "Q2"])
    except Exception as error:
        assert type(error).__name__ == "Unavailable"
    else:
        assert set(labels) == {"Q1", "Q2"}
