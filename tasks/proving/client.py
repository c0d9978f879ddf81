"""A server of the OpenAI-compatible completions API, asked one prompt after the other: vLLM, SGLang, llama.cpp and the like."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tasks.errors import TasksError
from warehouse.errors import UsageError
from warehouse.stream.wikidata_http import Backoff, is_loopback, retry_after_s

log = logging.getLogger(__name__)
#: Of an error page, as much as fits a line.
SHOWN_CHARACTERS = 160


class ServerUnavailable(TasksError):
    """A server could not be asked: it does not answer, refuses, or does not speak the completions API."""


def base_of(url: str) -> str:
    """The root of a server's API, up to and with `/v1`.

    Raises:
        UsageError: it is no http or https address, or has a password in it, which would be stored and shown.
    """
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise UsageError(f"{url!r} is no address of a server: {error}") from error
    if parsed.userinfo:
        raise UsageError("a server's address is stored and shown: give its key by the variable of serving.key_variable")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{url!r} is no address of a server; expected http://HOST:PORT or https://HOST")
    path = parsed.path.rstrip("/").removesuffix("/completions")
    return str(parsed.copy_with(path=path if path.endswith("/v1") else path + "/v1", query=None, fragment=None))


@dataclass
class CompletionsServer:
    """Greedy completions of one server.

    Attributes:
        url: as `base_of` gives it.
        model: the name to ask for; empty: the first that the server lists, filled in by the first question.
        key: sent as a bearer token; empty: none.
        timeout_s: of one request, in seconds.
        retries: of one request that failed in a way that may pass.
    """

    url: str
    model: str = ""
    key: str = field(default="", repr=False)
    timeout_s: float = 60.0
    retries: int = 2
    backoff: Backoff = field(default_factory=lambda: Backoff(base_s=1.0, max_s=30.0))
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        # A redirect could carry the key elsewhere; a proxy of the environment is for the world outside.
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=self.timeout_s,
            follow_redirects=False,
            trust_env=not is_loopback(httpx.URL(self.url).host),
        )

    def __enter__(self) -> CompletionsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def complete(self, prompt: str, max_tokens: int) -> str:
        """The greedy continuation of a prompt; empty where the server gives no text.

        Raises:
            ServerUnavailable: no answer after all tries, a refusal, or an answer of another shape.
        """
        if not self.model:
            self.model = self._first_model()
        asked = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        answer = self._ask("POST", "/completions", asked)
        try:
            text = answer["choices"][0].get("text")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._trouble("/completions", "its answer has no choices[0].text") from error
        # Engines whose logits are NaN write null, or nothing.
        return text if isinstance(text, str) else ""

    def weights(self) -> dict[str, str]:
        """Digests of the weights that the engine holds, as vLLM shows them in its mode for development.

        Raises:
            ServerUnavailable: it shows none.
        """
        path = "/weight_checker"
        answer = self._ask("POST", path, {"action": "checksum"}, root=self.url.removesuffix("/v1"))
        found = answer.get("checksums") if isinstance(answer, dict) else None
        if not isinstance(found, dict) or not all(isinstance(digest, str) for digest in found.values()):
            raise self._trouble(path, "its answer has no checksums")
        return found

    def _first_model(self) -> str:
        answer = self._ask("GET", "/models")
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise self._trouble("/models", "it lists no model; name one with --model or serving.model") from error

    def _ask(self, method: str, path: str, body: Any = None, *, root: str | None = None) -> Any:
        problem = ""
        for attempt in range(1, self.retries + 2):
            asked_s = None
            try:
                response = self._client.request(method, (root or self.url) + path, json=body)
                if response.status_code == 200:
                    return response.json()
                problem = f"HTTP {response.status_code} {' '.join(response.text.split())[:SHOWN_CHARACTERS]}".strip()
                if response.status_code != 429 and response.status_code < 500:
                    raise self._trouble(path, problem)
                asked_s = retry_after_s(response)
            except ValueError as error:
                problem = f"an answer that is no JSON ({str(error)[:SHOWN_CHARACTERS]})"
            except (httpx.TransportError, httpx.DecodingError) as error:
                problem = f"{type(error).__name__}: {error}".removesuffix(": ")
            if attempt <= self.retries:
                log.info("%s%s: %s; attempt %d follows", self.url, path, problem, attempt + 1)
                self.sleep(self.backoff.pause_s(attempt, asked_s))
        raise self._trouble(path, f"no answer after {self.retries + 1} attempts; the last one: {problem}")

    def _trouble(self, path: str, problem: str) -> ServerUnavailable:
        return ServerUnavailable(f"{self.url}{path}: {problem}")
