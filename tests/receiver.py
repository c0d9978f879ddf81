"""A webhook's receiver on this machine, which checks signatures with the lines that docs/ALERTS.md gives to readers."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "ALERTS.md"


def documented_check() -> Any:
    """`is_from_errata` of the page."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(source, str(PAGE), "exec"), names)
    return names["is_from_errata"]


@dataclass
class Receiver:
    """What came, in order: header, body and whether the signature holds. `answers` are used up first, then 204."""

    secret: str
    url: str = ""
    answers: list[int] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    raw: list[tuple[str, bytes]] = field(default_factory=list)
    is_signed: list[bool] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [body for body in self.bodies if body["kind"] == kind]


@contextmanager
def receiving(secret: str) -> Iterator[Receiver]:
    """A receiver that listens while the block runs."""
    check, found = documented_check(), Receiver(secret)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            header = self.headers.get("X-Errata-Signature", "")
            found.raw.append((header, body))
            found.is_signed.append(check(secret, header, body))
            found.bodies.append(json.loads(body))
            self.send_response(found.answers.pop(0) if found.answers else 204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing: pytest shows what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}/errata?token=in-the-address"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
