"""One contract, both stores: a directory, and S3 spoken over HTTP to moto's server."""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from warehouse.checkpoints import directory as artifacts_directory
from warehouse.checkpoints.directory import DirectoryStore
from warehouse.checkpoints.object_store import ObjectStore, StoreUnavailable, Version, validate_key
from warehouse.checkpoints.opening import open_store
from warehouse.checkpoints.s3 import S3Store
from warehouse.digests import sha256_bytes
from warehouse.errors import Conflict, IntegrityError, NotFound, WarehouseError

PART_BYTES = 5 << 20


class ClientProxy:
    """A real boto3 client, some of whose operations go through a test's own function first."""

    def __init__(self, client: Any, **replaced: Callable[..., Any]) -> None:
        self._client = client
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)
        if name not in self._replaced:
            return real
        return lambda **arguments: self._replaced[name](real, **arguments)


@pytest.fixture(scope="session")
def s3_client() -> Iterator[Any]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    server.stop()


@pytest.fixture
def bucket(s3_client: Any) -> str:
    name = f"errata-{uuid.uuid4().hex}"
    s3_client.create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    client = request.getfixturevalue("s3_client")
    # moto checks a condition and writes in two steps, S3 in one: the lock gives the server S3's guarantee.
    lock = threading.Lock()

    def alone(real: Callable[..., Any], **arguments: Any) -> Any:
        with lock:
            return real(**arguments)

    proxy = ClientProxy(client, put_object=alone)
    return S3Store(request.getfixturevalue("bucket"), "team/errata", client=proxy, multipart_bytes=PART_BYTES)


# ---------------------------------------------------------------- the contract


def test_bytes_come_back_as_they_went_in(store: ObjectStore) -> None:
    store.create("patches/ab/patch.json", b"{}\x00\xff")
    assert store.read("patches/ab/patch.json") == b"{}\x00\xff"


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    store.create("empty", b"")
    assert (store.exists("empty"), store.read("empty")) == (True, b"")


def test_a_file_comes_back_as_it_went_in(store: ObjectStore, tmp_path: Path) -> None:
    source, back = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(b"weights" * 1000)
    store.create("checkpoints/c1/model.safetensors", source)
    digest = store.read_to("checkpoints/c1/model.safetensors", back)
    assert back.read_bytes() == source.read_bytes()
    assert digest == sha256_bytes(source.read_bytes()) == store.digest("checkpoints/c1/model.safetensors")


def test_a_missing_local_file_is_named(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"gone\.bin"):
        store.create("a", tmp_path / "gone.bin")


def test_creating_the_same_content_twice_is_fine(store: ObjectStore) -> None:
    store.create("a", b"one")
    store.create("a", b"one")
    assert store.read("a") == b"one"


def test_creating_other_content_conflicts_and_changes_nothing(store: ObjectStore) -> None:
    store.create("a", b"one")
    with pytest.raises(Conflict, match="create-only"):
        store.create("a", b"two")
    assert store.read("a") == b"one"


@pytest.mark.parametrize("method", ["read", "digest", "read_versioned"])
def test_an_absent_object_is_not_found(store: ObjectStore, method: str) -> None:
    assert not store.exists("nothing/here")
    with pytest.raises(NotFound, match="nothing/here"):
        getattr(store, method)("nothing/here")


def test_list_gives_the_keys_of_a_prefix_in_order(store: ObjectStore) -> None:
    keys = ["b/2", "b/1/x", "b/1-x", "b.json", "a", "ba/1"]
    for key in keys:
        store.create(key, key.encode())
    assert list(store.list()) == sorted(keys)
    assert list(store.list("b/")) == ["b/1-x", "b/1/x", "b/2"]
    assert list(store.list("b")) == ["b.json", "b/1-x", "b/1/x", "b/2", "ba/1"]
    assert list(store.list("zzz/")) == []


@pytest.mark.parametrize(
    "key",
    [
        "", "/etc/passwd", "../x", "a/../x", "a/./b", "a//b", "a/", "a\\b",
        "a\x00b", "a\nb", "a\udcffb", ".store/tmp/x", "x" * 256,
    ],
)  # fmt: skip
def test_a_key_that_is_no_plain_relative_path_is_refused(store: ObjectStore, key: str) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: store.create(key, b"x"),
        lambda: store.read(key),
        lambda: store.exists(key),
        lambda: store.compare_and_swap(key, None, b"x"),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match="is refused"):
            attempt()


def test_keys_may_hold_dots_colons_and_letters_of_any_script() -> None:
    for key in (".gitattributes", "a..b", "sha256:ab/c", "données/été"):
        assert validate_key(key) == key


def test_a_read_stops_at_its_limit(store: ObjectStore, tmp_path: Path) -> None:
    store.create("a", b"x" * 100)
    assert len(store.read("a", 100)) == 100
    with pytest.raises(WarehouseError, match="larger than the limit of 99 bytes"):
        store.read("a", 99)
    with pytest.raises(WarehouseError, match="larger than the limit"):
        store.read_to("a", tmp_path / "out", 99)


def test_swap_from_nothing_then_from_the_version_read(store: ObjectStore) -> None:
    first = store.compare_and_swap("channels/p.json", None, b"one")
    assert store.read_versioned("channels/p.json") == (b"one", first)
    second = store.compare_and_swap("channels/p.json", first, b"two")
    assert second != first
    assert store.read_versioned("channels/p.json") == (b"two", second)


def test_a_swap_from_an_old_version_says_that_the_lineage_moved(store: ObjectStore) -> None:
    first = store.compare_and_swap("c", None, b"one")
    store.compare_and_swap("c", first, b"two")
    with pytest.raises(Conflict, match="lineage moved"):
        store.compare_and_swap("c", first, b"three")
    with pytest.raises(Conflict, match="lineage moved"):
        store.compare_and_swap("c", None, b"three")
    assert store.read("c") == b"two"


def test_a_swap_of_a_key_that_is_not_there_conflicts(store: ObjectStore) -> None:
    with pytest.raises(Conflict, match="lineage moved"):
        store.compare_and_swap("c", Version('"0123"'), b"one")
    assert not store.exists("c")


def test_a_swap_to_what_is_already_there_succeeds(store: ObjectStore) -> None:
    first = store.compare_and_swap("c", None, b"one")
    second = store.compare_and_swap("c", first, b"two")
    assert store.compare_and_swap("c", first, b"two") == second


def _race(attempts: list[Callable[[], object]]) -> list[BaseException | None]:
    """Run all at once; what each raised."""
    barrier = threading.Barrier(len(attempts))
    outcomes: list[BaseException | None] = [None] * len(attempts)

    def run(index: int) -> None:
        barrier.wait()
        try:
            attempts[index]()
        except Exception as error:
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(attempts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_of_two_racing_swaps_exactly_one_wins(store: ObjectStore) -> None:
    version: Version | None = None
    for number in range(8):
        offers = [f"{number}-left".encode(), f"{number}-right".encode()]
        expected = version
        outcomes = _race([lambda d=d, e=expected: store.compare_and_swap("c", e, d) for d in offers])
        losers = [outcome for outcome in outcomes if outcome is not None]
        assert len(losers) == 1 and isinstance(losers[0], Conflict)
        data, version = store.read_versioned("c")
        assert data == offers[outcomes.index(None)]


def test_of_two_racing_creates_with_other_content_exactly_one_wins(store: ObjectStore) -> None:
    for number in range(8):
        offers = [b"left", b"right"]
        outcomes = _race([lambda d=d, n=number: store.create(f"o/{n}", d) for d in offers])
        losers = [outcome for outcome in outcomes if outcome is not None]
        assert len(losers) == 1 and isinstance(losers[0], Conflict)
        assert store.read(f"o/{number}") == offers[outcomes.index(None)]


def test_racing_creates_with_the_same_content_all_succeed(store: ObjectStore) -> None:
    assert _race([lambda: store.create("same", b"content")] * 3) == [None, None, None]


# ---------------------------------------------------------------- the directory


@pytest.fixture
def folder(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def _damage_on_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that keeps another first byte than it was given."""
    sync = os.fsync

    def damaging(handle: int) -> None:
        sync(handle)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            os.pwrite(handle, b"\xee", 0)

    monkeypatch.setattr(artifacts_directory.os, "fsync", damaging)


def test_a_directory_finds_damage_on_read_back_and_stores_nothing(
    folder: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _damage_on_sync(monkeypatch)
    with pytest.raises(IntegrityError) as caught:
        folder.create("patches/ab/patch.json", b"one")
    for part in ("patches/ab/patch.json", sha256_bytes(b"one"), sha256_bytes(b"\xeene")):
        assert part in str(caught.value)
    assert list(folder.list()) == []


def test_a_damaged_swap_leaves_the_old_pointer(folder: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    version = folder.compare_and_swap("c", None, b"one")
    _damage_on_sync(monkeypatch)
    with pytest.raises(IntegrityError, match="read back"):
        folder.compare_and_swap("c", version, b"two")
    assert folder.read("c") == b"one"


def test_a_failed_write_leaves_no_object_and_no_temporary_file(folder: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder.create("before", b"x")
    monkeypatch.setattr(artifacts_directory.os, "fsync", full)
    with pytest.raises(WarehouseError, match="No space left on device"):
        folder.create("after", b"x" * 1000)
    assert list(folder.list()) == ["before"]
    assert list((folder.root / ".store" / "tmp").iterdir()) == []


def test_a_temporary_file_left_by_a_kill_is_ignored(folder: DirectoryStore) -> None:
    folder.create("a", b"one")
    (folder.root / ".store" / "tmp" / "left").write_bytes(b"half")
    assert list(folder.list()) == ["a"]
    folder.create("b", b"two")
    assert list(folder.list()) == ["a", "b"]


def test_creation_stays_exclusive_where_hard_links_do_not_exist(
    folder: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(artifacts_directory.os, "link", refused)
    outcomes = _race([lambda d=d: folder.create("a", d) for d in (b"left", b"right")])
    assert sorted(outcome is None for outcome in outcomes) == [False, True]
    assert folder.read("a") == (b"left", b"right")[outcomes.index(None)]


def test_a_symbolic_link_out_of_the_root_is_refused(folder: DirectoryStore, tmp_path: Path) -> None:
    folder.create("a", b"one")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    (folder.root / "out").symlink_to(tmp_path / "outside")
    attempts: list[Callable[[], object]] = [
        lambda: folder.read("out/secret"),
        lambda: folder.create("out/new", b"x"),
        lambda: folder.compare_and_swap("out/new", None, b"x"),
        lambda: list(folder.list()),
    ]
    for attempt in attempts:
        with pytest.raises(IntegrityError, match="leaves the store"):
            attempt()
    assert sorted(path.name for path in (tmp_path / "outside").iterdir()) == ["secret"]


def test_an_object_cannot_take_the_name_of_a_folder(folder: DirectoryStore) -> None:
    folder.create("a/b", b"one")
    for attempt in (lambda: folder.create("a", b"two"), lambda: folder.create("a/b/c", b"two")):
        with pytest.raises(Conflict, match="folder of this name"):
            attempt()


def test_reading_a_store_does_not_make_its_folder(folder: DirectoryStore) -> None:
    assert list(folder.list("a/")) == [] and not folder.exists("a")
    assert not folder.root.exists()


# ---------------------------------------------------------------- S3


def _altered(real: Callable[..., Any], **arguments: Any) -> Any:
    from botocore.response import StreamingBody

    answer = real(**arguments)
    data = bytearray(answer["Body"].read())
    data[0] ^= 1
    return {**answer, "Body": StreamingBody(io.BytesIO(bytes(data)), len(data))}


def test_s3_finds_damage_on_read_back(s3_client: Any, bucket: str) -> None:
    damaged = S3Store(bucket, client=ClientProxy(s3_client, get_object=_altered))
    with pytest.raises(IntegrityError) as caught:
        damaged.create("patches/ab/patch.json", b"one")
    for part in ("patches/ab/patch.json", sha256_bytes(b"one"), sha256_bytes(b"nne")):
        assert part in str(caught.value)
    with pytest.raises(IntegrityError, match="read back"):
        damaged.compare_and_swap("c", None, b"one")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(1 << 20) * 11)  # three parts, the last one short
    return path


def test_a_large_file_goes_up_in_parts(s3_client: Any, bucket: str, large: Path) -> None:
    numbers: list[int] = []

    def counted(real: Callable[..., Any], **arguments: Any) -> Any:
        numbers.append(arguments["PartNumber"])
        return real(**arguments)

    parts = S3Store(bucket, client=ClientProxy(s3_client, upload_part=counted), multipart_bytes=PART_BYTES)
    parts.create("m", large)
    parts.create("m", large)
    assert numbers == [1, 2, 3]
    assert parts.digest("m") == sha256_bytes(large.read_bytes())


def test_a_large_file_does_not_overwrite_one_that_came_first(s3_client: Any, bucket: str, large: Path) -> None:
    def overtaken(real: Callable[..., Any], **arguments: Any) -> Any:
        s3_client.put_object(Bucket=bucket, Key="m", Body=b"first")
        return real(**arguments)

    late = S3Store(bucket, client=ClientProxy(s3_client, upload_part=overtaken), multipart_bytes=PART_BYTES)
    with pytest.raises(Conflict, match="create-only"):
        late.create("m", large)
    assert late.read("m") == b"first"
    assert "Uploads" not in s3_client.list_multipart_uploads(Bucket=bucket)


def test_a_failed_upload_of_parts_is_aborted(s3_client: Any, bucket: str, large: Path) -> None:
    def failing(real: Callable[..., Any], **arguments: Any) -> Any:
        if arguments["PartNumber"] == 2:
            raise KeyboardInterrupt
        return real(**arguments)

    broken = S3Store(bucket, client=ClientProxy(s3_client, upload_part=failing), multipart_bytes=PART_BYTES)
    with pytest.raises(KeyboardInterrupt):
        broken.create("m", large)
    assert not broken.exists("m")
    assert "Uploads" not in s3_client.list_multipart_uploads(Bucket=bucket)


def _client_error(code: str, status: int) -> Exception:
    from botocore.exceptions import ClientError

    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


def test_a_409_is_tried_again(s3_client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warehouse.checkpoints.s3.BUSY_WAIT_S", 0.0)
    answers = [_client_error("ConditionalRequestConflict", 409)] * 2

    def busy(real: Callable[..., Any], **arguments: Any) -> Any:
        if answers:
            raise answers.pop()
        return real(**arguments)

    S3Store(bucket, client=ClientProxy(s3_client, put_object=busy)).create("a", b"one")
    assert s3_client.get_object(Bucket=bucket, Key="a")["Body"].read() == b"one" and not answers


def test_a_409_that_stays_ends_as_unavailable(s3_client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warehouse.checkpoints.s3.BUSY_WAIT_S", 0.0)

    def busy(real: Callable[..., Any], **arguments: Any) -> Any:
        raise _client_error("ConditionalRequestConflict", 409)

    with pytest.raises(StoreUnavailable, match="written by somebody else"):
        S3Store(bucket, client=ClientProxy(s3_client, put_object=busy)).create("a", b"one")


def test_a_write_whose_answer_was_lost_counts_when_retried(s3_client: Any, bucket: str) -> None:
    def twice(real: Callable[..., Any], **arguments: Any) -> Any:
        real(**arguments)
        return real(**arguments)  # botocore's retry: the server answers 412, because of ourselves

    again = S3Store(bucket, client=ClientProxy(s3_client, put_object=twice))
    again.create("a", b"one")
    version = again.compare_and_swap("c", None, b"one")
    assert again.read_versioned("c") == (b"one", version)


@pytest.mark.parametrize("code, kind", [("AccessDenied", WarehouseError), ("SlowDown", StoreUnavailable)])
def test_refusals_and_chance_failures_are_told_apart(s3_client: Any, bucket: str, code: str, kind: type[Exception]) -> None:
    def failing(real: Callable[..., Any], **arguments: Any) -> Any:
        raise _client_error(code, {"AccessDenied": 403, "SlowDown": 503}[code])

    with pytest.raises(kind) as caught:
        S3Store(bucket, client=ClientProxy(s3_client, put_object=failing)).create("a", b"one")
    assert type(caught.value) is kind and code in str(caught.value)


def test_an_unreachable_server_is_named_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    nobody = S3Store("b", endpoint_url="http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:9.*AWS_ENDPOINT_URL"):
        nobody.read("a")


def test_a_missing_bucket_is_named(s3_client: Any) -> None:
    with pytest.raises(WarehouseError, match="bucket 'no-such-bucket' does not exist"):
        S3Store("no-such-bucket", client=s3_client).create("a", b"one")


def test_two_prefixes_of_a_bucket_do_not_meet(s3_client: Any, bucket: str) -> None:
    left, right = S3Store(bucket, "a", client=s3_client), S3Store(bucket, "a/b", client=s3_client)
    right.create("x", b"one")
    assert not left.exists("x") and list(right.list()) == ["x"] and list(left.list()) == ["b/x"]


# ---------------------------------------------------------------- addresses


def test_a_path_and_a_file_address_open_the_same_directory(tmp_path: Path) -> None:
    open_store(str(tmp_path / "my store")).create("a", b"one")
    assert open_store((tmp_path / "my store").as_uri()).read("a") == b"one"


def test_an_s3_address_opens_bucket_and_prefix_at_the_endpoint_of_the_environment(
    s3_client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_client.meta.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    open_store(f"s3://{bucket}/deep/prefix/").create("a", b"one")
    assert s3_client.get_object(Bucket=bucket, Key="deep/prefix/a")["Body"].read() == b"one"


@pytest.mark.parametrize("url", ["", "s3://", "file://relative", "gs://bucket/prefix"])
def test_an_address_that_says_too_little_or_too_much_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        open_store(url)
