"""HTTP to Wikidata and nowhere else: only configured hosts, timeouts, size limits, pauses that the server asks for.

Etiquette of the API: a User-Agent with a contact, requests in series, `maxlag`, ids in batches, gzip.
"""

from __future__ import annotations

import logging
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any

import httpx
from pydantic_core import from_json

from warehouse.errors import SourceError, UsageError

logger = logging.getLogger(__name__)

#: Ids in one call of `wbgetentities`, for clients without higher limits.
BATCH = 50
#: English and what stands in for it, as `entities.py` reads labels.
LANGUAGES = "en|mul|en-gb|en-us|en-ca"
#: The largest real items have 4 to 5 MB; fifty of them in one answer are not expected.
MAX_DOCUMENT_BYTES = 32 * 1024 * 1024
MAX_PAUSE_S = 300.0
MAX_REDIRECTS = 3
#: API errors that pass by themselves.
PASSING = ("maxlag", "ratelimited", "readonly", "internal_api_error", "lockmanager-fail-conflict", "failed-save")


class ForbiddenHost(SourceError):
    """A request, or a redirect, to a host that is not configured. Nothing was sent."""


class Unavailable(SourceError):
    """Wikidata did not answer after all retries; what was asked can be asked again later."""


@dataclass(frozen=True)
class Backoff:
    """Pauses between attempts: doubled each time, with jitter; a pause that the server asks for is kept.

    `base_s` and `max_s` in seconds.
    """

    base_s: float = 5.0
    max_s: float = MAX_PAUSE_S
    rng: random.Random = field(default_factory=random.Random)

    def pause_s(self, failures: int, asked_s: float | None = None) -> float:
        if asked_s is not None:
            # A little later than asked, and not together with everybody else who was told the same.
            return min(asked_s, MAX_PAUSE_S) * self.rng.uniform(1.0, 1.1)
        return min(self.max_s, self.base_s * 2.0 ** min(failures - 1, 30)) * self.rng.uniform(0.5, 1.0)


def retry_after_s(response: httpx.Response, now: datetime | None = None) -> float | None:
    """Seconds that `Retry-After` asks for: an integer, a float or an HTTP date; None where there is no usable one."""
    value = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        seconds = (moment - (now or datetime.now(UTC))).total_seconds()
    # NaN fails both comparisons.
    return max(0.0, min(seconds, MAX_PAUSE_S)) if seconds >= 0 or seconds < 0 else None


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def user_agent(version: str, contact: str) -> str:
    """`<client>/<version> (<contact>) <library>/<version>`, as Wikimedia's access policy asks."""
    return f"Errata/{version} ({contact}) httpx/{httpx.__version__} Python/{platform.python_version()}"


def guarded_client(
    hosts: Sequence[str], agent: str, *, connect_timeout_s: float = 10.0, read_timeout_s: float = 60.0
) -> httpx.Client:
    """A client that sends nothing to other hosts than `hosts` ("name" or "name:port") and nothing in clear text abroad.

    Raises:
        UsageError: the User-Agent is empty or cannot be sent.
    """
    if not agent.strip() or not agent.isascii() or not agent.isprintable():
        raise UsageError(f"User-Agent {agent!r} cannot be sent; give a contact of plain ASCII")
    allowed = {host.lower() for host in hosts}

    def check(request: httpx.Request) -> None:
        url = request.url
        if url.host not in allowed and f"{url.host}:{url.port}" not in allowed:
            raise ForbiddenHost(
                f"{url} is not among the configured hosts ({', '.join(sorted(allowed))}); nothing was sent. "
                "`wikidata.hosts` in errata.toml lists them"
            )
        if url.scheme != "https" and not is_loopback(url.host):
            raise ForbiddenHost(f"{url} is not https; nothing was sent")

    only_here = all(is_loopback(host.rpartition(":")[0] or host) for host in allowed)
    return httpx.Client(
        headers={"User-Agent": agent, "Accept-Encoding": "gzip"},
        timeout=httpx.Timeout(read_timeout_s, connect=connect_timeout_s),
        follow_redirects=False,
        # A proxy of the environment is for the world outside.
        trust_env=not only_here,
        event_hooks={"request": [check]},
    )


@dataclass(frozen=True)
class HttpAnswer:
    """What a document request came to. `document` is None with the reason why: missing, too_large, forbidden."""

    document: Any
    reason: str = ""


class WikidataClient:
    """Entity documents of one Wikibase, in series.

    Args:
        client: of `guarded_client`.
        base_url: "https://www.wikidata.org".
        maxlag: seconds of replication lag at which the server shall send us away.
        retries: of one request, after which `Unavailable` is raised.
    """

    def __init__(
        self,
        client: httpx.Client,
        base_url: str,
        *,
        maxlag: int = 5,
        retries: int = 8,
        backoff: Backoff | None = None,
        max_bytes: int = MAX_DOCUMENT_BYTES,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client, self._base = client, base_url.rstrip("/")
        self._maxlag, self._retries, self._max_bytes = maxlag, retries, max_bytes
        self._backoff = backoff or Backoff()
        self._sleep = sleep
        self.requests = 0
        self.retried = 0

    def revision(self, entity_id: str, revision: int | None) -> HttpAnswer:
        """The envelope of `Special:EntityData` for one revision (None: the current one).

        Raises:
            Unavailable: no answer after all retries.
        """
        params = {} if revision is None else {"revision": str(revision)}
        return self._get(f"{self._base}/wiki/Special:EntityData/{entity_id}.json", params)

    def entities(self, ids: Sequence[str], props: str = "info|labels|descriptions|aliases|claims|datatype") -> dict[str, Any]:
        """`wbgetentities` in batches of 50: the body of each id asked for; missing ones have `missing`, redirects another id.

        An id that is not in the answer is left out. A batch that is too large is asked for in halves.

        Raises:
            Unavailable: no answer after all retries.
        """
        unique = list(dict.fromkeys(ids))
        found: dict[str, Any] = {}
        for start in range(0, len(unique), BATCH):
            found |= self._batch(unique[start : start + BATCH], props)
        return found

    def _batch(self, ids: list[str], props: str) -> dict[str, Any]:
        params = {
            "action": "wbgetentities",
            "ids": "|".join(ids),
            "props": props,
            "languages": LANGUAGES,
            "redirects": "yes",
            "format": "json",
            "formatversion": "2",
            "maxlag": str(self._maxlag),
        }
        answer = self._get(f"{self._base}/w/api.php", params)
        entities = answer.document.get("entities") if isinstance(answer.document, dict) else None
        if isinstance(entities, dict):
            return _by_asked_id(ids, entities)
        if len(ids) > 1:
            # One malformed id spoils a whole call, one huge item makes it too large.
            half = len(ids) // 2
            return self._batch(ids[:half], props) | self._batch(ids[half:], props)
        logger.warning("wbgetentities of %s gives nothing: %s", ids[0], answer.reason or "no entities in the answer")
        return {}

    # ------------------------------------------------------------ one request

    def _get(self, url: str, params: dict[str, str]) -> HttpAnswer:
        problem = ""
        for attempt in range(1, self._retries + 2):
            self.requests += 1
            asked_s = None
            try:
                status, asked_s, body = self._read(httpx.URL(url, params=params))
                if body is None:
                    return HttpAnswer(None, "too_large")
                if status in (400, 404, 410):
                    return HttpAnswer(None, "missing")
                if status in (401, 403):
                    return HttpAnswer(None, "forbidden")
                if status == 200:
                    document = from_json(body)
                    code, lag_s = _api_error(document)
                    if not code.startswith(PASSING):
                        return HttpAnswer(document, code)
                    problem = f"API error {code}"
                    asked_s = asked_s if asked_s is not None else None if lag_s is None else lag_s * attempt
                elif status == 429 or status >= 500:
                    problem = f"HTTP {status}"
                else:
                    return HttpAnswer(None, f"http_{status}")
            except ValueError as error:
                # A body cut short, or an error page: the next one may be whole.
                problem = f"an answer that is no JSON ({str(error)[:100]})"
            except (httpx.TransportError, httpx.DecodingError) as error:
                problem = f"{type(error).__name__}: {error}"
            if attempt <= self._retries:
                self.retried += 1
                logger.info("%s: %s; attempt %d follows", url, problem, attempt + 1)
                self._sleep(self._backoff.pause_s(attempt, asked_s))
        raise Unavailable(f"{url}: no answer after {self._retries + 1} attempts; the last one: {problem}")

    def _read(self, url: httpx.URL) -> tuple[int, float | None, bytes | None]:
        """(status, Retry-After in seconds, body or None where it is too large); follows redirects to configured hosts."""
        for _ in range(MAX_REDIRECTS + 1):
            with self._client.stream("GET", url) as response:
                if response.has_redirect_location:
                    try:
                        # Checked like every request when it is sent: a foreign host is refused there.
                        url = url.join(response.headers["location"])
                    except (httpx.InvalidURL, ValueError):
                        return 404, None, b""
                    continue
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > self._max_bytes:
                        return response.status_code, None, None
                return response.status_code, retry_after_s(response), bytes(body)
        return 310, None, b""


def _api_error(document: Any) -> tuple[str, float | None]:
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return "", None
    code, lag = error.get("code"), error.get("lag")
    lag_s = float(lag) if isinstance(lag, (int, float)) and 0 <= lag < 1e6 else None
    return str(code or "unknown")[:100], lag_s


def _by_asked_id(ids: Sequence[str], entities: dict[str, Any]) -> dict[str, Any]:
    """Bodies by the id that was asked for, whether the answer is keyed by it or by the target of its redirect."""
    sources = {
        body["redirects"].get("from"): body
        for body in entities.values()
        if isinstance(body, dict) and isinstance(body.get("redirects"), dict)
    }
    found = {asked: entities.get(asked, sources.get(asked)) for asked in ids}
    return {asked: body for asked, body in found.items() if isinstance(body, dict)}
