"""Stores that ignore or refuse a condition are found by asking: moto's server, made to behave like known bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks.night.store_fit import ASKED, ensure_fit_store
from tasks.settings import configure
from tests.warehouse.test_object_store import ClientProxy, _client_error, bucket, s3_client
from warehouse.checkpoints.directory import DirectoryStore
from warehouse.checkpoints.object_store import StoreUnavailable
from warehouse.checkpoints.s3 import S3Store
from warehouse.checkpoints.store_check import StoreUnfit, check_store, require_fit
from warehouse.errors import WarehouseError

__all__ = ["bucket", "s3_client"]


def ignoring(*names: str) -> Callable[..., Any]:
    """A server that drops these headers and writes."""

    def write(real: Callable[..., Any], **arguments: Any) -> Any:
        return real(**{name: value for name, value in arguments.items() if name not in names})

    return write


def refusing(name: str, code: str, status: int) -> Callable[..., Any]:
    """A server that answers a request with this header with an error."""

    def write(real: Callable[..., Any], **arguments: Any) -> Any:
        if name in arguments:
            raise _client_error(code, status)
        return real(**arguments)

    return write


SERVERS: dict[str, tuple[dict[str, Callable[..., Any]], str]] = {
    "ignores both": (
        {"put_object": ignoring("IfNoneMatch", "IfMatch")},
        "If-None-Match.*ignores.*If-Match with another.*ignores",
    ),
    "ignores If-None-Match": (
        {"put_object": ignoring("IfNoneMatch")},
        "If-None-Match: .* on an object that is there: .* ignores",
    ),
    "ignores If-Match": ({"put_object": ignoring("IfMatch")}, "If-Match with another ETag: the server ignores"),
    "ignores it on parts": ({"complete_multipart_upload": ignoring("IfNoneMatch")}, "upload in parts is completed: .* ignores"),
    "refuses If-None-Match": (
        {"put_object": refusing("IfNoneMatch", "NotImplemented", 501)},
        "refuses the condition .*NotImplemented",
    ),
    "refuses If-Match": (
        {"put_object": refusing("IfMatch", "NotImplemented", 501)},
        "If-Match with another ETag: the server refuses it",
    ),
    "refuses by 400": (
        {"put_object": refusing("IfNoneMatch", "InvalidArgument", 400)},
        "refuses the condition .*InvalidArgument",
    ),
    "refuses the checksum": ({"put_object": refusing("ChecksumSHA256", "InvalidArgument", 400)}, "refuses the checksum header"),
    "refuses it on parts": (
        {"complete_multipart_upload": refusing("IfNoneMatch", "NotImplemented", 501)},
        "upload in parts is completed: the server refuses it",
    ),
}


def keys(client: Any, name: str) -> list[str]:
    return [entry["Key"] for entry in client.list_objects_v2(Bucket=name).get("Contents", ())]


def test_a_server_that_keeps_its_conditions_is_fit_and_nothing_is_left_there(s3_client: Any, bucket: str) -> None:
    store = S3Store(bucket, "team", client=s3_client)
    findings = check_store(store)
    assert [finding.found for finding in findings] == [""] * 5 and all(finding.is_kept for finding in findings)
    require_fit(store)
    assert keys(s3_client, bucket) == []


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_breaks_a_promise_is_named_with_what_it_did(s3_client: Any, bucket: str, name: str) -> None:
    replaced, said = SERVERS[name]
    with pytest.raises(StoreUnfit, match=rf"s3://{bucket} cannot be used as a store: .*{said}.*docs/STORES\.md"):
        require_fit(S3Store(bucket, client=ClientProxy(s3_client, **replaced)))
    assert keys(s3_client, bucket) == []
    assert "Uploads" not in s3_client.list_multipart_uploads(Bucket=bucket)


def test_what_may_not_be_deleted_is_no_object_of_the_store(s3_client: Any, bucket: str) -> None:
    store = S3Store(bucket, client=ClientProxy(s3_client, delete_object=refusing("Key", "AccessDenied", 403)))
    require_fit(store)
    assert len(keys(s3_client, bucket)) == 2 and list(store.list()) == []


def test_no_access_no_bucket_and_a_busy_server_are_not_taken_for_a_broken_promise(s3_client: Any, bucket: str) -> None:
    for fault, kind in (("AccessDenied", WarehouseError), ("SlowDown", StoreUnavailable)):
        status = {"AccessDenied": 403, "SlowDown": 503}[fault]
        with pytest.raises(kind, match=fault) as caught:
            require_fit(S3Store(bucket, client=ClientProxy(s3_client, put_object=refusing("Key", fault, status))))
        assert not isinstance(caught.value, StoreUnfit)
    with pytest.raises(WarehouseError, match="does not exist"):
        require_fit(S3Store("no-such-bucket", client=s3_client))


def test_a_folder_needs_nobodys_promise(tmp_path: Path) -> None:
    require_fit(DirectoryStore(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_client: Any, bucket: str) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ERRATA_STORE", f"s3://{bucket}/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_client.meta.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return tmp_path / "home"


def test_a_store_is_asked_once_in_a_home_and_again_where_it_was_unfit(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def unfit(store: S3Store) -> None:
        asked.append(1)
        raise StoreUnfit("ignores")

    with monkeypatch.context() as patched:
        patched.setattr("tasks.night.store_fit.require_fit", unfit)
        for _ in range(2):
            with pytest.raises(StoreUnfit):
                ensure_fit_store(configure())
        assert len(asked) == 2 and not (home / ASKED).exists()
    ensure_fit_store(configure())
    monkeypatch.setattr("tasks.night.store_fit.require_fit", unfit)
    ensure_fit_store(configure())
    assert len(asked) == 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnfit):
        ensure_fit_store(configure())


def test_the_command_says_what_was_asked_and_fails_where_a_promise_is_broken(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(app, ["store", "check", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["is_fit"]
    real = S3Store.ask

    def ask(store: S3Store, operation: str, key: str, **more: Any) -> Any:
        more.pop("IfMatch", None)
        return real(store, operation, key, **more)

    monkeypatch.setattr(S3Store, "ask", ask)
    result = CliRunner().invoke(app, ["store", "check"])
    assert result.exit_code == 1 and "ignores the condition" in " ".join(result.output.split())
    assert not json.loads(CliRunner().invoke(app, ["store", "check", "--json"]).stdout)["is_fit"]
