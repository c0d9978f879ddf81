"""Asking a server: addresses, keys, retries, and answers of other shapes."""

from __future__ import annotations

import pytest

from tasks.proving.client import CompletionsServer, ServerUnavailable, base_of
from tests.completions import NAME, CompletionsStandIn
from warehouse.errors import UsageError


def echo(prompt: str, max_tokens: int) -> str:
    return f" {prompt} {max_tokens}"


@pytest.mark.parametrize(
    "url", ["http://host:8000", "http://host:8000/", "http://host:8000/v1", "http://host:8000/v1/completions?x=1"]
)
def test_an_address_may_be_given_with_or_without_its_end(url: str) -> None:
    assert base_of(url) == "http://host:8000/v1"


@pytest.mark.parametrize("url", ["host:8000", "ftp://host", "http://", "", "http://user:secret@host"])
def test_what_is_no_address_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        base_of(url)
    assert "secret" not in str(refused.value)


def test_the_first_model_is_asked_greedily() -> None:
    with CompletionsStandIn(echo) as stand_in, CompletionsServer(base_of(stand_in.url)) as server:
        assert server.complete("Who", 5) == " Who 5"
    assert stand_in.bodies == [{"model": NAME, "prompt": "Who", "max_tokens": 5, "temperature": 0}]


def test_a_server_that_is_loading_is_asked_again_after_growing_pauses() -> None:
    pauses: list[float] = []
    with (
        CompletionsStandIn(echo) as stand_in,
        CompletionsServer(base_of(stand_in.url), NAME, sleep=pauses.append) as server,
    ):
        stand_in.fails = 2
        assert server.complete("Who", 5) == " Who 5"
    assert len(pauses) == 2
    assert 0.5 <= pauses[0] <= 1.0 <= pauses[1] <= 2.0


def test_a_server_that_does_not_answer_is_one_line() -> None:
    with CompletionsStandIn(echo) as gone:
        url = base_of(gone.url)
    with CompletionsServer(url, NAME, sleep=lambda _s: None) as server, pytest.raises(ServerUnavailable) as trouble:
        server.complete("Who", 5)
    assert "no answer after 3 attempts" in str(trouble.value)
    assert "\n" not in str(trouble.value)


def test_without_its_key_a_server_refuses_at_once_and_with_it_answers() -> None:
    with CompletionsStandIn(echo, key="k1") as stand_in:
        url = base_of(stand_in.url)
        with CompletionsServer(url, NAME) as server, pytest.raises(ServerUnavailable, match="HTTP 401"):
            server.complete("Who", 5)
        with CompletionsServer(url, NAME, key="k1") as server:
            assert server.complete("Who", 5) == " Who 5"
    assert "k1" not in repr(server)


def test_no_text_is_an_empty_answer() -> None:
    with CompletionsStandIn(lambda _p, _n: None) as stand_in, CompletionsServer(base_of(stand_in.url), NAME) as server:
        assert server.complete("Who", 5) == ""
