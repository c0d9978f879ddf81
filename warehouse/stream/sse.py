"""Server-sent events over HTTP: frames in bounded memory, and a connection that comes back where it was cut.

The frames are parsed by httpx-sse. Around it stand the limits that it does not have: a line without an end or an event
without an end would grow without bound there.
"""

from __future__ import annotations

import codecs
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

from warehouse.errors import SourceError
from warehouse.stream.wikidata_http import Backoff, retry_after_s

logger = logging.getLogger(__name__)

#: Characters of one frame that are passed on; of a longer one the rest is skipped up to its blank line.
MAX_FRAME_CHARS = 1024 * 1024
MAX_ID_CHARS = 4096
#: A server asks for its own pause by `retry:`; nobody waits longer than this for it.
MAX_RETRY_MS = 300_000
_PIECES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_ENDS = ("\n\n", "\r\n\r\n", "\r\r")


class StreamError(SourceError):
    """The stream refuses us, or stayed away for longer than we wait; says which address and what to do."""


# ---------------------------------------------------------------- frames


def read_frames(texts: Iterable[str], max_chars: int = MAX_FRAME_CHARS) -> Iterator[ServerSentEvent]:
    """The frames with data in a text stream; comments, empty frames and a frame cut off at the end are left out.

    A frame longer than `max_chars` comes with its data cut, so that it cannot be parsed and is refused by its size.
    """
    source = EventSource(cast(httpx.Response, _Text(bounded(texts, max_chars))))
    for frame in source.iter_sse():
        if frame.data:
            yield frame


def decoded(chunks: Iterable[bytes]) -> Iterator[str]:
    """Bytes as text: an event stream is UTF-8 whatever its header says, and a wrong byte becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for chunk in chunks:
        if text := decoder.decode(chunk):
            yield text


def bounded(texts: Iterable[str], max_chars: int) -> Iterator[str]:
    """The same text with at most `max_chars` characters between two blank lines; no line end is lost or made up."""
    limit = _Limit(max_chars)
    for text in texts:
        if text:
            yield limit.cut(text)


class _Limit:
    def __init__(self, max_chars: int) -> None:
        self._max = max_chars
        self._used = 0
        self._tail = ""
        self._was_line_end = self._is_line_start = True
        self._last = ""

    def cut(self, text: str) -> str:
        kept = text if self._used + len(text) <= self._max else self._slowly(text)
        if kept is text:
            seen = self._tail + text
            end = max(seen.rfind(mark) + len(mark) if mark in seen else 0 for mark in _ENDS)
            self._used = len(seen) - end if end else self._used + len(text)
            self._was_line_end = self._is_line_start = text[-1] in "\r\n"
        self._tail = (self._tail + text)[-3:]
        self._last = kept[-1] if kept else self._last
        return kept

    def _slowly(self, text: str) -> str:
        parts = []
        for index, piece in enumerate(_PIECES.findall(text)):
            body = piece.rstrip("\r\n")
            end = piece[len(body) :]
            if not index and piece == "\n" and self._tail.endswith("\r"):
                # The second half of a line end; it belongs to the first half, wherever that went.
                parts += [end] if self._last == "\r" else []
                continue
            if not body and self._was_line_end:
                self._used, self._is_line_start = 0, True
                parts.append(end)
                continue
            kept = body[: max(0, self._max - self._used)]
            self._used += len(body)
            self._is_line_start = self._is_line_start and not kept
            parts.append(kept)
            # A line end with nothing before it would be a blank line, which ends the frame.
            if end and not self._is_line_start:
                parts.append(end)
                self._is_line_start = True
            self._was_line_end = bool(end)
        return "".join(parts)


class _Text:
    """What httpx-sse asks of a response."""

    def __init__(self, texts: Iterator[str]) -> None:
        self.headers = {"content-type": "text/event-stream"}
        self._texts = texts

    def iter_text(self) -> Iterator[str]:
        return self._texts


# ---------------------------------------------------------------- the connection


class EventStream:
    """A server-sent event stream that reconnects with the id of the last frame that its user has kept.

    Args:
        client: of `wikidata_http.guarded_client`: hosts are checked there.
        url: of the stream.
        on_wait: called before each wait, with whether the stream is connected (or waits to be again); True ends it.
        max_failures: attempts in a row without a frame before giving up; 0: never.
        read_timeout_s: longest silence before the connection counts as dead; None: the client's.
    """

    def __init__(
        self,
        client: httpx.Client,
        url: str,
        *,
        on_wait: Callable[[bool], bool] = lambda connected: False,
        backoff: Backoff | None = None,
        max_failures: int = 20,
        read_timeout_s: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client, self._url, self._on_wait = client, url, on_wait
        self._backoff = backoff or Backoff()
        self._max_failures = max_failures
        timeout = client.timeout
        self._timeout = httpx.Timeout(
            connect=timeout.connect, write=timeout.write, pool=timeout.pool, read=read_timeout_s or timeout.read
        )
        self._sleep = sleep
        self._is_over = False
        self.last_event_id = ""
        self.connections = 0
        self.cuts = 0

    def frames(self, last_event_id: str = "", since: str = "") -> Iterator[ServerSentEvent]:
        """Frames with data, over as many connections as it takes, until `on_wait` ends it.

        Args:
            last_event_id: where to go on; "" begins at `since`, or with what comes now.
            since: ISO time or milliseconds; used only while there is no id.

        Raises:
            StreamError: the server refuses the request, or `max_failures` attempts brought nothing.
            ForbiddenHost: the address is not one of the configured hosts.
        """
        self.last_event_id, failures = last_event_id, 0
        while not self._stop():
            asked_s = None
            try:
                for frame in self._connection(since):
                    failures = 0
                    if frame.retry is not None and 0 <= frame.retry <= MAX_RETRY_MS:
                        asked_s = frame.retry / 1000
                    if is_usable_id(frame.id):
                        self.last_event_id = frame.id
                    yield frame
                problem = "the server ended the connection"
            except _Refused as refused:
                asked_s, problem = refused.retry_after_s, str(refused)
            except (httpx.TransportError, httpx.DecodingError, SSEError) as error:
                problem = f"{type(error).__name__}: {error}"
            if self._is_over:
                return
            failures += 1
            self.cuts += 1
            if self._max_failures and failures > self._max_failures:
                raise StreamError(f"{self._url}: {failures} attempts brought nothing; the last one: {problem}")
            logger.info("%s: %s; attempt %d follows", self._url, problem, failures + 1)
            self._pause(self._backoff.pause_s(failures, asked_s))

    def _connection(self, since: str) -> Iterator[ServerSentEvent]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store", "Accept-Encoding": "identity"}
        params = {}
        if self.last_event_id:
            headers["Last-Event-ID"] = self.last_event_id
        elif since:
            params["since"] = since
        with self._client.stream("GET", self._url, headers=headers, params=params, timeout=self._timeout) as response:
            self._check(response)
            self.connections += 1
            yield from read_frames(self._watched(decoded(response.iter_bytes())))

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status == 429 or status >= 500:
            raise _Refused(f"HTTP {status}", retry_after_s(response))
        if status != 200:
            advice = "its history may be shorter than our pause: begin anew with --since" if status in (400, 404) else ""
            raise StreamError(f"{self._url} answers HTTP {status}; expected an event stream. {advice}".rstrip())
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            raise _Refused(f"the content type is {kind!r}, no event stream", None)

    def _watched(self, texts: Iterator[str]) -> Iterator[str]:
        """The text, asking `on_wait` before each wait: all frames received so far are handed out by then."""
        while not self._stop(connected=True):
            text = next(texts, None)
            if text is None:
                return
            yield text

    def _stop(self, connected: bool = False) -> bool:
        self._is_over = self._is_over or self._on_wait(connected)
        return self._is_over

    def _pause(self, seconds: float) -> None:
        """Sleep in short pieces, so that an end is seen in time."""
        end = time.monotonic() + seconds
        while not self._stop() and (left := end - time.monotonic()) > 0:
            self._sleep(min(1.0, left))


class _Refused(Exception):
    def __init__(self, problem: str, after_s: float | None) -> None:
        super().__init__(problem)
        self.retry_after_s = after_s


def is_usable_id(event_id: str) -> bool:
    """Whether an id can be sent back in a header; others leave the cursor where it is."""
    return 0 < len(event_id) <= MAX_ID_CHARS and event_id.isascii() and event_id.isprintable()


def recorded_frames(paths: Iterable[Any], chunk_bytes: int = 64 * 1024) -> Iterator[ServerSentEvent]:
    """The frames of recorded streams, one file after the other, read in pieces."""
    for path in paths:
        with path.open("rb") as handle:
            yield from read_frames(decoded(iter(lambda handle=handle: handle.read(chunk_bytes), b"")))
