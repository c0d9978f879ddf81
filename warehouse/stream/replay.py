"""A server on loopback that replays a recording as Wikimedia's stream and Wikidata's documents, with faults on demand.

For tests and demonstrations: the client meets real HTTP, and the same seed gives each connection the same faults.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from warehouse.errors import UsageError
from warehouse.sources.base import parse_time
from warehouse.stream.recording import Recording
from warehouse.stream.wikidata_http import BATCH

STREAM_PATH = "/v2/stream/recentchange"
_ENTITY_DATA, _API = "/wiki/Special:EntityData/", "/w/api.php"
#: Agents that Wikimedia blocks: libraries that do not say whose they are.
_GENERIC = ("python-httpx", "python-requests", "curl", "python-urllib")
_GARBAGE = (
    b'event: message\ndata: {"broken": \n\n',
    b"data: \xff\xfe\x00\x9f not text\n\n",
    b"event: message\ndata: [1, 2, 3]\n\n",
    b'data: {"meta": null, "wiki": "wikidatawiki"}\n\n',
    b'event: error\ndata: [{"status": 503, "message": "built: upstream error"}]\n\n',
    b"data: " + b"x" * 300_000 + b"\n\n",
    b": a comment\nid\nfoo: bar\ndata\n\n",
)


@dataclass(frozen=True)
class Faults:
    """Chances between 0 and 1. On the stream they are drawn for each event, 429 and 503 for each connection.

    Attributes:
        drop: the connection is cut, on the stream in the middle of a frame.
        delay: nothing comes for up to `delay_s` seconds.
        duplicate: one of the last ten events is sent again.
        garbage: a broken frame without an id is put in; a document is cut short.
        too_many: HTTP 429 with Retry-After.
        unavailable: HTTP 503 without one.
        lag: the API says maxlag.
    """

    drop: float = 0.0
    delay: float = 0.0
    duplicate: float = 0.0
    garbage: float = 0.0
    too_many: float = 0.0
    unavailable: float = 0.0
    lag: float = 0.0
    delay_s: float = 0.05
    retry_after_s: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        for name in KINDS:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"fault {name} is {getattr(self, name)}; a chance is between 0 and 1")

    @classmethod
    def of_every_kind(cls, chance: float, seed: int = 0) -> Faults:
        return cls(**dict.fromkeys(KINDS, chance), seed=seed)


KINDS = tuple(f.name for f in fields(Faults) if f.name not in ("delay_s", "retry_after_s", "seed"))


class ReplayServer(ThreadingHTTPServer):
    """Serves one recording on 127.0.0.1; `port` 0 takes a free one.

    Attributes:
        asked: how often each document was asked for and answered, by (id, revision).
        met: how often each fault struck.
        resumed: the `Last-Event-ID` of each connection to the stream.
    """

    daemon_threads = True

    def __init__(
        self, recording: Recording, port: int = 0, faults: Faults | None = None, *, heartbeat_s: float = 0.25, rate: float = 0.0
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.recording, self.faults = recording, faults or Faults()
        self.heartbeat_s, self.rate = heartbeat_s, rate
        self.asked: Counter[tuple[str, str]] = Counter()
        self.met: Counter[str] = Counter()
        self.resumed: list[str] = []
        self.is_closing = Event()
        self._lock = Lock()
        self._connections = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def draw(self) -> random.Random:
        """The chances of one connection."""
        with self._lock:
            self._connections += 1
            return random.Random(f"{self.faults.seed}:{self._connections}")

    def strikes(self, chances: random.Random, kind: str) -> bool:
        # Drawn also where the chance is nought, so that one fault does not move the others.
        struck = chances.random() < getattr(self.faults, kind)
        if struck:
            with self._lock:
                self.met[kind] += 1
        return struck

    def note(self, entity_id: str, revision: str) -> None:
        with self._lock:
            self.asked[entity_id, revision] += 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


@contextmanager
def serving(recording: Recording, faults: Faults | None = None, **options: Any) -> Iterator[ReplayServer]:
    """A server in a thread of its own, for the time of the block."""
    server = ReplayServer(recording, faults=faults, **options)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.is_closing.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Cut(Exception):
    """The connection ends here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A document is two writes; together with delayed acknowledgements each would wait 40 ms.
    disable_nagle_algorithm = True
    server: ReplayServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the caller knows what was asked."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        self._chances = self.server.draw()
        path = unquote(address.path)
        try:
            agent = self.headers.get("User-Agent", "")
            if not agent or agent.lower().startswith(_GENERIC):
                self._send(403, {"error": "set a User-Agent with a contact"})
            elif path.startswith("/v2/stream/"):
                self._stream(query)
            elif path.startswith(_ENTITY_DATA) and path.endswith(".json"):
                self._entity_data(path[len(_ENTITY_DATA) : -len(".json")], query)
            elif path == _API:
                self._api(query)
            else:
                self._send(404, {"error": f"nothing at {path}"})
        except (_Cut, OSError):
            self.close_connection = True

    # ------------------------------------------------------------ the stream

    def _stream(self, query: dict[str, str]) -> None:
        server, recording = self.server, self.server.recording
        if self._is_refused():
            return
        last = self.headers.get("Last-Event-ID", "")
        position = recording.position(last) if last else self._since(query.get("since", ""))
        if position is None:
            self._send(400, {"error": "Last-Event-ID is not of this stream"})
            return
        server.resumed.append(last)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._chunk(b":ok\n\n")
        for index in range(position, len(recording.frames)):
            self._event(index)
            if server.rate:
                time.sleep(1 / server.rate)
        while not server.is_closing.wait(server.heartbeat_s):
            self._chunk(b":\n\n")
        self._chunk(b"")

    def _since(self, since: str) -> int | None:
        if not since:
            return 0
        moment = parse_time(since)
        if moment is not None:
            return self.server.recording.since(int(moment.timestamp() * 1000))
        return self.server.recording.since(int(since)) if since.isascii() and since.isdigit() else None

    def _event(self, index: int) -> None:
        server, chances = self.server, self._chances
        frame = self._frame(index)
        if server.strikes(chances, "delay"):
            server.is_closing.wait(chances.uniform(0, server.faults.delay_s))
        if server.strikes(chances, "garbage"):
            self._chunk(chances.choice(_GARBAGE))
        if server.strikes(chances, "drop"):
            self._chunk(frame[: chances.randrange(1, len(frame))])
            raise _Cut
        self._chunk(frame)
        if server.strikes(chances, "duplicate"):
            self._chunk(self._frame(chances.randrange(max(0, index - 9), index + 1)))

    def _frame(self, index: int) -> bytes:
        frame = self.server.recording.frames[index]
        data = "".join(f"data: {line}\n" for line in frame.data.split("\n"))
        return f"event: {frame.event}\nid: {self.server.recording.wire_id(index)}\n{data}\n".encode("utf-8", "replace")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    # ------------------------------------------------------------ documents

    def _entity_data(self, entity_id: str, query: dict[str, str]) -> None:
        if self._is_refused() or self._is_cut():
            return
        recording, revision = self.server.recording, query.get("revision", "")
        self.server.note(entity_id, revision)
        target = recording.redirects.get(entity_id, entity_id)
        is_number = revision.isascii() and revision.isdigit()
        body = recording.revisions.get((target, int(revision))) if is_number else recording.current.get(target)
        if body is None and target != entity_id:
            body = recording.current.get(target)
        if body is None:
            self._send(404, {"error": f"no {entity_id} at {revision or 'any revision'}"})
        else:
            self._send(200, {"entities": {target: body}})

    def _api(self, query: dict[str, str]) -> None:
        if self._is_refused() or self._is_cut():
            return
        ids = [name for name in query.get("ids", "").split("|") if name]
        if query.get("action") != "wbgetentities" or not 0 < len(ids) <= BATCH:
            self._error("toomanyvalues" if len(ids) > BATCH else "badvalue")
        elif "maxlag" in query and self.server.strikes(self._chances, "lag"):
            lag = {"lag": 0.01, "info": "Waiting for a built replica: 0.01 seconds lagged"}
            self._error("maxlag", lag, {"Retry-After": str(self.server.faults.retry_after_s)})
        else:
            for entity_id in ids:
                self.server.note(entity_id, "api")
            self._send(200, {"entities": {name: self._body(name) for name in ids}, "success": 1})

    def _body(self, entity_id: str) -> dict[str, Any]:
        recording = self.server.recording
        target = recording.redirects.get(entity_id, entity_id)
        moved = {"redirects": {"from": entity_id, "to": target}} if target != entity_id else {}
        if target in recording.current:
            return {**recording.current[target], **moved}
        if target in recording.labels:
            label = recording.labels[target]
            kind = "property" if target.startswith("P") else "item"
            return {"type": kind, "id": target, "labels": {"en": {"language": "en", "value": label}} if label else {}, **moved}
        return {"id": entity_id, "missing": ""}

    def _error(self, code: str, more: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> None:
        body = {"error": {"code": code, "info": code, **(more or {})}, "servedby": "replay"}
        self._send(200, body, {"MediaWiki-API-Error": code, **(headers or {})})

    def _is_refused(self) -> bool:
        server = self.server
        if server.strikes(self._chances, "too_many"):
            self._send(429, {"error": "too many requests"}, {"Retry-After": str(server.faults.retry_after_s)})
            return True
        if server.strikes(self._chances, "unavailable"):
            self._send(503, {"error": "unavailable"})
            return True
        return False

    def _is_cut(self) -> bool:
        server = self.server
        if server.strikes(self._chances, "delay"):
            server.is_closing.wait(self._chances.uniform(0, server.faults.delay_s))
        if server.strikes(self._chances, "drop"):
            raise _Cut
        if server.strikes(self._chances, "garbage"):
            self._answer(200, b'{"entities":{"Q', {})
            return True
        return False

    def _send(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"), headers or {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
