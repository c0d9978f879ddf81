"""HTTP to Wikidata: nowhere else, not without a name, not without limits, and with the pauses it asks for."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from warehouse.stream.wikidata_http import (
    Backoff,
    ForbiddenHost,
    Unavailable,
    WikidataClient,
    guarded_client,
    retry_after_s,
    user_agent,
)

BASE = "https://www.wikidata.org"
AGENT = user_agent("1.0", "me@example.org")
Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler, **options: Any) -> tuple[WikidataClient, list[float]]:
    """A client on a made-up server, and the pauses it takes."""
    pauses: list[float] = []
    guarded = guarded_client(["www.wikidata.org"], AGENT)
    http = httpx.Client(
        transport=httpx.MockTransport(handler), headers=guarded.headers, event_hooks=guarded.event_hooks
    )  # fmt: skip
    options = {"retries": 3, "backoff": Backoff(1.0, 8.0, random.Random(0)), **options}
    return WikidataClient(http, BASE, sleep=pauses.append, **options), pauses


def sequence(*answers: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    asked: list[httpx.Request] = []
    left = list(answers)

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return found

    return handler, asked


OK = {"entities": {"Q1": {"id": "Q1", "lastrevid": 7}}}


# ---------------------------------------------------------------- where to


@pytest.mark.parametrize(
    "url", ["https://evil.example/w/api.php", "https://www.wikidata.org.evil.example/", "http://127.0.0.1:1/"]
)
def test_other_hosts_are_refused_before_anything_is_sent(url: str) -> None:
    with guarded_client(["www.wikidata.org"], AGENT) as client, pytest.raises(ForbiddenHost, match="nothing was sent"):
        client.get(url)


def test_clear_text_goes_to_this_machine_only() -> None:
    with guarded_client(["www.wikidata.org"], AGENT) as client, pytest.raises(ForbiddenHost, match="not https"):
        client.get("http://www.wikidata.org/")


def test_a_port_can_be_part_of_an_allowed_host() -> None:
    with guarded_client(["127.0.0.1:9"], AGENT) as client:
        with pytest.raises(ForbiddenHost):
            client.get("http://127.0.0.1:10/")
        with pytest.raises(httpx.TransportError):
            client.get("http://127.0.0.1:9/")


def test_redirects_are_followed_to_configured_hosts_only() -> None:
    moved = httpx.Response(302, headers={"location": "/wiki/Special:EntityData/Q1.json?revision=7"})
    handler, asked = sequence(moved, httpx.Response(200, json=OK))
    assert client_of(handler)[0].revision("q1", None).document == OK
    assert [str(r.url) for r in asked][1] == f"{BASE}/wiki/Special:EntityData/Q1.json?revision=7"
    handler, asked = sequence(httpx.Response(302, headers={"location": "https://evil.example/"}))
    with pytest.raises(ForbiddenHost):
        client_of(handler)[0].revision("Q1", None)
    assert len(asked) == 1


def test_redirects_without_end_end() -> None:
    handler, asked = sequence(httpx.Response(302, headers={"location": "/again"}))
    assert client_of(handler)[0].revision("Q1", 7).document is None
    assert len(asked) == 4


def test_every_request_says_who_asks() -> None:
    handler, asked = sequence(httpx.Response(200, json=OK))
    client_of(handler)[0].revision("Q1", 7)
    assert asked[0].headers["user-agent"].startswith("Errata/1.0 (me@example.org) httpx/")


@pytest.mark.parametrize("agent", ["", "Errata (Zoë)", "a\nb"])
def test_an_agent_that_cannot_be_sent_is_an_error(agent: str) -> None:
    with pytest.raises(ValueError, match="plain ASCII"):
        guarded_client(["www.wikidata.org"], agent)


# ---------------------------------------------------------------- how often


def test_passing_troubles_are_waited_out_as_the_server_asks() -> None:
    lag = {"error": {"code": "maxlag", "info": "Waiting", "lag": 2.5}}
    handler, asked = sequence(
        httpx.Response(429, headers={"retry-after": "1.5"}), httpx.Response(200, json=lag), httpx.ReadTimeout("slow"),
        httpx.Response(200, json=OK),
    )  # fmt: skip
    client, pauses = client_of(handler)
    assert client.revision("Q1", 7).document == OK
    assert len(asked) == 4 and client.retried == 3
    # Retry-After; lag times the number of attempts; doubled base.
    assert 1.5 <= pauses[0] <= 1.65 and 5.0 <= pauses[1] <= 5.5 and 2.0 <= pauses[2] <= 4.0


def test_a_body_cut_short_is_asked_for_again() -> None:
    handler, _ = sequence(httpx.Response(200, content=b'{"entities":{"Q'), httpx.Response(200, json=OK))
    assert client_of(handler)[0].revision("Q1", 7).document == OK


def test_after_all_retries_it_says_what_went_wrong() -> None:
    handler, asked = sequence(httpx.Response(503))
    with pytest.raises(Unavailable, match="no answer after 4 attempts; the last one: HTTP 503"):
        client_of(handler)[0].revision("Q1", 7)
    assert len(asked) == 4


@pytest.mark.parametrize(("status", "reason"), [(404, "missing"), (403, "forbidden"), (418, "http_418")])
def test_a_refusal_is_an_answer_and_not_tried_again(status: int, reason: str) -> None:
    handler, asked = sequence(httpx.Response(status))
    assert client_of(handler)[0].revision("Q1", 7).reason == reason
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [("5", 5.0), ("0.25", 0.25), ("-3", 0.0), ("inf", 300.0), ("nan", None), ("", None), ("soon", None),
     ("Sat, 21 Nov 2026 12:00:30 GMT", 30.0), ("Sat, 21 Nov 2026 11:00:00 GMT", 0.0), ("Sat, 99 Nov 2026", None)],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(value: str, expected: float | None) -> None:
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    assert retry_after_s(httpx.Response(429, headers={"retry-after": value}), now) == expected


def test_pauses_double_up_to_a_limit_and_are_jittered() -> None:
    backoff = Backoff(1.0, 10.0, random.Random(1))
    assert all(0.5 * 2**n <= backoff.pause_s(n + 1) <= 2**n for n in range(3))
    assert all(5.0 <= backoff.pause_s(n) <= 10.0 for n in (5, 50, 5000))
    assert len({backoff.pause_s(3) for _ in range(5)}) == 5


# ---------------------------------------------------------------- how much


def test_an_answer_over_the_limit_is_left_unread() -> None:
    handler, _ = sequence(httpx.Response(200, content=b"x" * 5000))
    assert client_of(handler, max_bytes=1000)[0].revision("Q1", 7).reason == "too_large"
    packed = gzip.compress(json.dumps(OK).encode() + b" " * 10_000_000)
    handler, _ = sequence(httpx.Response(200, content=packed, headers={"content-encoding": "gzip"}))
    assert client_of(handler, max_bytes=1000)[0].revision("Q1", 7).reason == "too_large"


def entity_server(asked: list[list[str]], most: int = 50) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        ids = request.url.params["ids"].split("|")
        asked.append(ids)
        assert request.url.params["maxlag"] == "5"
        if len(ids) > most or "bad" in ids:
            return httpx.Response(200, json={"error": {"code": "no-such-entity", "info": "..."}})
        body: dict[str, Any] = {name: {"id": name} for name in ids}
        if "Q7" in body:
            del body["Q7"]
            body["Q70"] = {"id": "Q70", "redirects": {"from": "Q7", "to": "Q70"}}
        return httpx.Response(200, json={"entities": body, "success": 1})

    return handler


def test_ids_are_asked_for_in_batches_of_fifty_and_each_once() -> None:
    asked: list[list[str]] = []
    ids = [f"Q{n}" for n in range(100, 220)]
    found = client_of(entity_server(asked))[0].entities([*ids, *ids])
    assert [len(batch) for batch in asked] == [50, 50, 20] and list(found) == ids


def test_one_id_that_spoils_a_batch_costs_only_itself() -> None:
    asked: list[list[str]] = []
    found = client_of(entity_server(asked))[0].entities(["Q1", "Q2", "bad", "Q3"])
    assert sorted(found) == ["Q1", "Q2", "Q3"]


def test_a_redirect_is_found_under_the_id_that_was_asked_for() -> None:
    found = client_of(entity_server([]))[0].entities(["Q7", "Q8"])
    assert (found["Q7"]["id"], found["Q8"]["id"]) == ("Q70", "Q8")
