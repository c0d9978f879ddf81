"""Who may read, what browsers may do, and that nothing can be written."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from starlette.routing import Route

from flows.dashboard.app import create_app
from flows.dashboard.door import check_door
from tasks.settings import DashboardSettings
from tests.flows.dashboard.conftest import Shown
from warehouse.errors import UsageError

TOKEN = "a long tökén"


@pytest.fixture(scope="module")
def closed(many_nights: Shown) -> Iterator[TestClient]:
    """A dashboard with a token; only pages that need no copy are asked, since another one has it open."""
    settings = many_nights.settings.model_copy(update={"dashboard": DashboardSettings.model_validate({"token": TOKEN})})
    yield TestClient(create_app(settings), base_url="http://errata.example")


def test_no_route_writes(many_nights: Shown, many: TestClient) -> None:
    routes = [route for route in create_app(many_nights.settings).routes if isinstance(route, Route)]
    assert len(routes) > 25
    assert {method for route in routes for method in route.methods or ()} == {"GET", "HEAD"}
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for route in routes:
            assert many.request(method, route.path).status_code == 405, route.path


def test_every_answer_has_the_headers_that_keep_it_apart(many: TestClient) -> None:
    for address in ("/", "/data/nights/nights.csv", "/static/style.css", "/nowhere", "/nights?page=x"):
        headers = many.get(address).headers
        assert "script-src" not in headers["content-security-policy"]
        assert headers["content-security-policy"].startswith("default-src 'none';")
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8484", ""])
def test_a_name_that_is_not_this_machine_is_refused(many: TestClient, host: str) -> None:
    assert many.get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost:8484", "127.0.0.1", "[::1]:8484", "LOCALHOST"])
def test_this_machine_has_several_names(many: TestClient, host: str) -> None:
    assert many.get("/static/style.css", headers={"host": host}).status_code == 200


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("header", [basic("anybody", TOKEN), basic("", TOKEN)])
def test_who_knows_the_token_reads(closed: TestClient, header: str) -> None:
    assert closed.get("/static/style.css", headers={"authorization": header}).status_code == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer x", basic("x", "y"), basic(TOKEN, ""), "Basic ###", "Digest abc", basic("x", TOKEN + " ")]
)
def test_who_does_not_know_it_is_asked_for_it(closed: TestClient, header: str) -> None:
    answer = closed.get("/", headers={"authorization": header} if header else {})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic ")
    assert "Lineage" not in answer.text


def test_a_bearer_token_opens_too(many_nights: Shown) -> None:
    settings = many_nights.settings.model_copy(update={"dashboard": DashboardSettings.model_validate({"token": "plain"})})
    client = TestClient(create_app(settings), base_url="http://errata.example")
    assert client.get("/static/icon.svg", headers={"authorization": "Bearer plain"}).status_code == 200


def test_beyond_this_machine_a_token_is_required() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        check_door(host, "")
    check_door("0.0.0.0", "token")
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(UsageError, match="ERRATA_DASHBOARD__TOKEN"):
            check_door(host, "")


def test_the_token_is_not_printed_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.settings import Settings

    monkeypatch.setenv("ERRATA_DASHBOARD__TOKEN", "secret-word")
    settings = Settings()
    assert settings.dashboard.token.get_secret_value() == "secret-word"
    assert "secret-word" not in f"{settings} {settings!r} {settings.model_dump_json()}"
