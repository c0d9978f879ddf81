"""Does this store keep the promises that promotion rests on? Asked of the server itself, with an object of its own.

Create-only objects and the swap of a channel are conditional writes. A server that ignores a condition answers every write
with success: two machines then promote over each other and both are told that they won. Nothing else shows it.
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from warehouse.checkpoints.directory import DirectoryStore
from warehouse.checkpoints.object_store import RESERVED, ObjectStore, StoreUnavailable
from warehouse.checkpoints.s3 import ConditionLost, S3Store
from warehouse.errors import NotFound, WarehouseError
from warehouse.records import Record

REQUIREMENT = "docs/STORES.md says what a store must do and which servers do not"
_OTHER_ETAG = '"00000000000000000000000000000000"'


class StoreFinding(Record):
    """One promise: what was asked of the store, whether it was kept, and what the server did instead."""

    check: str
    is_kept: bool
    found: str = ""


class StoreUnfit(WarehouseError):
    """The store breaks a promise that promotion rests on; names it, and what to read."""


def check_store(store: ObjectStore) -> list[StoreFinding]:
    """Ask the store for everything that promotion needs of it.

    What is written for this lies under a reserved name and is deleted again, where the credentials allow that.

    Raises:
        StoreUnavailable: the store cannot be reached.
        WarehouseError: it refuses access, or there is no such bucket.
    """
    if not isinstance(store, S3Store):
        return [StoreFinding(check="a folder: this program itself keeps its conditions, under a lock", is_kept=True)]
    # A key of its own, so that two machines may ask at once.
    key = f"{RESERVED}/check-{uuid.uuid4().hex}"
    try:
        return list(_asked(store, key))
    finally:
        for name in (key, f"{key}-parts"):
            _tried(lambda name=name: store.ask("delete_object", name))


def time_of(store: ObjectStore) -> datetime:
    """The store's own clock: of a bucket the Date of an answer, of a folder the time that its file system gives a file.

    Raises:
        StoreUnavailable: the store cannot be reached.
        WarehouseError: it refuses access.
    """
    if isinstance(store, S3Store):
        key = f"{RESERVED}/clock-{uuid.uuid4().hex}"
        answer = store.ask("put_object", key, Body=b"")
        _tried(lambda: store.ask("delete_object", key))
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    assert isinstance(store, DirectoryStore)
    place = next(folder for folder in (store.root, *store.root.parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            return datetime.fromtimestamp(Path(file.name).stat().st_mtime, UTC)
    except OSError as error:
        raise WarehouseError(f"{store.url} cannot be written: {error.strerror or error}") from error


def require_fit(store: ObjectStore) -> None:
    """Raises:
    StoreUnfit: a promise is not kept.
    StoreUnavailable: the store cannot be reached.
    WarehouseError: it refuses access, or there is no such bucket.
    """
    broken = [finding for finding in check_store(store) if not finding.is_kept]
    if broken:
        said = "; ".join(f"{finding.check}: {finding.found}" for finding in broken)
        raise StoreUnfit(f"{store.url} cannot be used as a store: {said}. {REQUIREMENT}; `errata store check` asks again")


def _asked(store: S3Store, key: str) -> Iterator[StoreFinding]:
    name = "a write with its SHA-256 (x-amz-checksum-sha256) and If-None-Match: * on a new object"
    error = _tried(lambda: _put(store, key, b"one", {"IfNoneMatch": "*"}))
    if error is not None:
        yield _finding(name, _blamed(store, key, error))
        return
    yield _finding(name)
    yield _lost("If-None-Match: * on an object that is there", _tried(lambda: _put(store, key, b"two", {"IfNoneMatch": "*"})))
    yield _lost("If-Match with another ETag", _tried(lambda: _put(store, key, b"two", {"IfMatch": _OTHER_ETAG})))
    yield _swapped(store, key)
    yield _in_parts(store, f"{key}-parts")


def _blamed(store: S3Store, key: str, error: WarehouseError) -> str:
    """Which part of a refused write the server cannot take.

    Raises:
        WarehouseError: it takes no write at all.
    """
    if _tried(lambda: _put(store, key, b"one", {})) is None:
        return f"the server refuses the condition ({error})"
    if _tried(lambda: store.ask("put_object", key, Body=b"one")) is None:
        return f"the server refuses the checksum header ({error})"
    raise error


def _swapped(store: S3Store, key: str) -> StoreFinding:
    name = "If-Match with the right ETag"
    etag = store.ask("get_object", key)["ETag"]
    error = _tried(lambda: _put(store, key, b"three", {"IfMatch": etag}))
    if error is not None:
        return _finding(name, f"the server refuses it ({error})")
    there = store.ask("get_object", key)["Body"].read()
    return _finding(name, "" if there == b"three" else "what is read back is not what was written")


def _in_parts(store: S3Store, key: str) -> StoreFinding:
    """Large files go up in parts; there the condition is on their completion."""
    name = "If-None-Match: * where an upload in parts is completed"
    error = _tried(lambda: _put_parts(store, key, b"one"))
    if error is not None:
        return _finding(name, f"the server refuses it on a new object ({error})")
    return _lost(name, _tried(lambda: _put_parts(store, key, b"two")))


def _lost(name: str, error: WarehouseError | None) -> StoreFinding:
    """A write whose condition does not hold has to be told so, and not something else."""
    if error is None:
        return _finding(name, "the server ignores the condition and overwrites")
    # NotFound: S3 says so of an If-Match whose object is gone.
    return _finding(name, "" if isinstance(error, (ConditionLost, NotFound)) else f"the server refuses it ({error})")


def _finding(check: str, fault: str = "") -> StoreFinding:
    return StoreFinding(check=check, is_kept=not fault, found=fault)


def _put(store: S3Store, key: str, data: bytes, condition: Mapping[str, str]) -> None:
    checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
    store.ask("put_object", key, Body=data, ChecksumSHA256=checksum, **condition)


def _put_parts(store: S3Store, key: str, data: bytes) -> None:
    upload = store.ask("create_multipart_upload", key)["UploadId"]
    try:
        etag = store.ask("upload_part", key, UploadId=upload, PartNumber=1, Body=data)["ETag"]
        parts = {"Parts": [{"ETag": etag, "PartNumber": 1}]}
        store.ask("complete_multipart_upload", key, UploadId=upload, MultipartUpload=parts, IfNoneMatch="*")
    except WarehouseError:
        _tried(lambda: store.ask("abort_multipart_upload", key, UploadId=upload))
        raise


def _tried(write: Callable[[], object]) -> WarehouseError | None:
    """The error of a write, or None.

    Raises:
        StoreUnavailable: the store was not reached, so that nothing is known.
    """
    try:
        write()
    except StoreUnavailable:
        raise
    except WarehouseError as error:
        return error
    return None
