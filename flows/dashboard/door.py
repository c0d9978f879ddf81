"""Who may read the dashboard, and what browsers may do with its pages."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from warehouse.errors import UsageError

#: No script runs, nothing is fetched from elsewhere, nothing is sent anywhere, no page stands in another's frame.
POLICY = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
#: Evidently's page is one file with its scripts inside: they may run, in an origin of its own that can fetch nothing.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
_NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_door(host: str, token: str) -> None:
    """Raises UsageError where others could read without a token."""
    if not token and not is_loopback(host):
        raise UsageError(
            f"host {host!r} can be reached from other machines: set a token (ERRATA_DASHBOARD__TOKEN), or listen on 127.0.0.1"
        )


class Door:
    """Lets a request in that knows the token, where there is one; else one that asks for this machine by name.

    The latter keeps pages of other sites from reading through a name that they point to this machine.
    """

    def __init__(self, host: str, token: str) -> None:
        self._token = token.encode()
        self._names = {*_NAMES, host.strip("[]").lower()}

    async def __call__(self, request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        """The answer, with the headers that every answer has."""
        refused = self._refused(request)
        answer = refused if refused is not None else await go_on(request)
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer

    def _refused(self, request: Request) -> Response | None:
        if self._token:
            if hmac.compare_digest(_given(request.headers.get("authorization", "")), self._token):
                return None
            ask = {"WWW-Authenticate": 'Basic realm="errata", charset="UTF-8"'}
            return PlainTextResponse("This dashboard asks for its token, as the password of any user.\n", 401, ask)
        host = re.sub(r":\d+$", "", request.headers.get("host", "")).strip("[]").lower()
        if host not in self._names:
            return PlainTextResponse("This dashboard answers to the name of its own machine only.\n", 400)
        return None


def _given(header: str) -> bytes:
    """The token of an Authorization header, as a bearer token or as the password of any user."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""
