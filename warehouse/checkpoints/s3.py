"""A checkpoint store in S3 or a server that speaks its language, through boto3 and conditional writes.

`If-None-Match: *` creates only, `If-Match: <etag>` compares and swaps; a large file goes up in parts and the
condition is on their completion. Every write is read back and its sha256 compared, because some servers accept a
wrong checksum. A kill can leave parts of an unfinished upload: they are no object, and a lifecycle rule
(AbortIncompleteMultipartUpload) takes them away. boto3 is imported when a store is opened, not before.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from warehouse.checkpoints.object_store import (
    CHUNK_BYTES,
    RESERVED,
    ObjectStore,
    StoreUnavailable,
    Version,
    create_conflict,
    source_digest,
    swap_conflict,
    validate_key,
    validate_prefix,
)
from warehouse.digests import sha256_bytes
from warehouse.errors import IntegrityError, NotFound, WarehouseError

MULTIPART_BYTES = 64 << 20
MAX_PARTS = 10_000
# S3 answers 409 while another conditional write to the key is in the air; botocore does not retry that one.
BUSY_ATTEMPTS = 5
BUSY_WAIT_S = 0.1

_ABSENT = ("404", "NoSuchKey", "NotFound")
_LOST = ("412", "PreconditionFailed")
_BUSY = ("409", "ConditionalRequestConflict", "OperationAborted")
_CHANCE = (
    "500",
    "502",
    "503",
    "504",
    "InternalError",
    "SlowDown",
    "ServiceUnavailable",
    "RequestTimeout",
    "Throttling",
)
_DENIED = ("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")

log = logging.getLogger(__name__)


class ConditionLost(WarehouseError):
    """The condition of a write did not hold."""


class _Busy(StoreUnavailable):
    """Another conditional write to this key is under way."""


@final
class S3Store(ObjectStore):
    """Objects below `prefix` of a bucket that exists.

    Args:
        endpoint_url: a server that is not Amazon's (it is then addressed by path, not by host name).
        client: a ready boto3 S3 client instead of one made from the environment.
        multipart_bytes: larger files go up in parts of this size (S3 wants at least 5 MiB).
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        endpoint_url: str | None = None,
        region: str | None = None,
        client: Any = None,
        multipart_bytes: int = MULTIPART_BYTES,
    ) -> None:
        if multipart_bytes < 5 << 20:
            raise ValueError(f"multipart_bytes is {multipart_bytes}; S3 takes no parts below 5 MiB")
        self.bucket = bucket
        self.prefix = f"{validate_key(prefix.strip('/'))}/" if prefix.strip("/") else ""
        self.url = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self._multipart_bytes = multipart_bytes
        self._client = client or _make_client(endpoint_url, region)
        self._endpoint = str(getattr(getattr(self._client, "meta", None), "endpoint_url", endpoint_url))

    def create(self, key: str, data: bytes | Path) -> None:
        validate_key(key)
        wanted = source_digest(data)
        written = None
        if not self.exists(key):
            written = self._write(key, data, wanted, {"IfNoneMatch": "*"})
        found = self.digest(key)
        if found == wanted:
            return
        if written is None:
            raise create_conflict(self.url, key, wanted, found)
        raise self._damaged(key, wanted, found)

    def stream(self, key: str) -> Iterator[bytes]:
        body = self._call("get_object", key)["Body"]
        with self._translated(key):
            yield from body.iter_chunks(CHUNK_BYTES)

    def exists(self, key: str) -> bool:
        try:
            self._call("head_object", key)
        except NotFound:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        validate_prefix(prefix)
        with self._translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            for page in pages:
                for entry in page.get("Contents", ()):
                    key = entry["Key"].removeprefix(self.prefix)
                    # Consoles make "folders" as empty objects whose key ends in a slash; what a check of the store could
                    # not delete is none of its objects.
                    if not key.endswith("/") and not key.startswith(f"{RESERVED}/"):
                        yield key

    def read_versioned(self, key: str) -> tuple[bytes, Version]:
        answer = self._call("get_object", key)
        with self._translated(key):
            return answer["Body"].read(), Version(answer["ETag"])

    def compare_and_swap(self, key: str, expected: Version | None, data: bytes) -> Version:
        validate_key(key)
        condition: Mapping[str, str] = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        written = self._write(key, data, sha256_bytes(data), condition)
        try:
            there, found = self.read_versioned(key)
        except NotFound:
            raise swap_conflict(self.url, key, expected, None) from None
        if there == data:
            return found
        if written is None:
            raise swap_conflict(self.url, key, expected, found)
        if written == found:
            raise self._damaged(key, sha256_bytes(data), sha256_bytes(there))
        return written  # our write took; somebody has moved the key on since

    # ------------------------------------------------------------ writing

    def _write(self, key: str, data: bytes | Path, digest: str, condition: Mapping[str, str]) -> Version | None:
        """Write if the condition holds; the new ETag, or None where it did not hold."""
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        for attempt in range(BUSY_ATTEMPTS):
            try:
                if isinstance(data, Path) and size > self._multipart_bytes:
                    return self._write_parts(key, data, size, condition)
                return self._write_once(key, data, digest, condition)
            except (ConditionLost, NotFound):
                return None  # NotFound: IfMatch on a key that is gone
            except _Busy:
                if attempt + 1 == BUSY_ATTEMPTS:
                    raise
                time.sleep(BUSY_WAIT_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _write_once(self, key: str, data: bytes | Path, digest: str, condition: Mapping[str, str]) -> Version:
        checksum = base64.b64encode(bytes.fromhex(digest)).decode()
        if isinstance(data, bytes):
            answer = self._call("put_object", key, Body=data, ChecksumSHA256=checksum, **condition)
        else:
            with data.open("rb") as handle:
                answer = self._call("put_object", key, Body=handle, ChecksumSHA256=checksum, **condition)
        return Version(answer["ETag"])

    def _write_parts(self, key: str, path: Path, size: int, condition: Mapping[str, str]) -> Version:
        part_bytes = max(self._multipart_bytes, -(-size // MAX_PARTS))
        upload_id = self._call("create_multipart_upload", key)["UploadId"]
        parts = []
        try:
            with path.open("rb") as handle:
                while piece := handle.read(part_bytes):
                    number = len(parts) + 1
                    answer = self._call("upload_part", key, UploadId=upload_id, PartNumber=number, Body=piece)
                    parts.append({"ETag": answer["ETag"], "PartNumber": number})
            answer = self._call(
                "complete_multipart_upload", key, UploadId=upload_id, MultipartUpload={"Parts": parts}, **condition
            )
        except BaseException:
            self._abort(key, upload_id)
            raise
        return Version(answer["ETag"])

    def _abort(self, key: str, upload_id: str) -> None:
        """Drop the parts; a failure here must not hide the one that led here."""
        try:
            self._call("abort_multipart_upload", key, UploadId=upload_id)
        except WarehouseError as error:
            log.warning("unfinished upload %s of %s stays in %s: %s", upload_id, key, self.url, error)

    # ------------------------------------------------------------ speaking with the server

    def _call(self, operation: str, key: str, **arguments: Any) -> Any:
        return self.ask(operation, validate_key(key), **arguments)

    def ask(self, operation: str, key: str, **arguments: Any) -> Any:
        """One call of the boto3 client about a key below the prefix, a reserved one too (`store_check`).

        Raises:
            ConditionLost: the condition of a write did not hold.
            NotFound: there is no such object.
            StoreUnavailable: the store cannot be reached, or is too busy.
            WarehouseError: it refuses.
        """
        with self._translated(key):
            return getattr(self._client, operation)(Bucket=self.bucket, Key=self.prefix + key, **arguments)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Turn the errors of botocore into ours."""
        from botocore import exceptions

        try:
            yield
        except exceptions.ClientError as error:
            raise self._refused(key, error.response) from error
        except exceptions.FlexibleChecksumError as error:
            raise IntegrityError(f"{key} in {self.url} came back damaged: {error}") from error
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise WarehouseError(
                f"no usable credentials for {self.url} at {self._endpoint}: {error}; "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws"
            ) from error
        except (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError) as error:
            raise StoreUnavailable(
                f"cannot reach the store {self.url} at {self._endpoint} for {key}: {error}; "
                "check that the server runs, and AWS_ENDPOINT_URL"
            ) from error
        except exceptions.BotoCoreError as error:
            raise WarehouseError(f"boto3 could not ask {self.url} at {self._endpoint} for {key}: {error}") from error

    def _refused(self, key: str, response: dict[str, Any]) -> WarehouseError:
        fault = response.get("Error", {})
        code = str(fault.get("Code", ""))
        status = str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        said = f"{code or status} {fault.get('Message', '')}".strip()
        if code == "NoSuchBucket":
            return WarehouseError(f"bucket {self.bucket!r} does not exist at {self._endpoint}; create it first")
        if code in _ABSENT:
            return NotFound(f"no object {key} in {self.url}")
        if code in _LOST:
            return ConditionLost(f"{key} in {self.url}: the condition did not hold ({said})")
        if code in _BUSY:
            return _Busy(f"{key} in {self.url} is being written by somebody else ({said}); run again")
        if code in _CHANCE or status in _CHANCE:
            return StoreUnavailable(f"{self.url} at {self._endpoint} failed for {key} ({said}); run again")
        if code in _DENIED or status in _DENIED:
            return WarehouseError(
                f"{self.url} at {self._endpoint} refused access to {key} ({said}); the credentials need "
                "s3:GetObject, s3:PutObject, s3:AbortMultipartUpload and s3:ListBucket"
            )
        return WarehouseError(f"{self.url} at {self._endpoint} refused {key} ({said})")

    def _damaged(self, key: str, wanted: str, found: str) -> IntegrityError:
        return IntegrityError(
            f"{key} in {self.url}: wrote sha256 {wanted} and read back {found}; no channel was moved. "
            "Look at the object, delete it by hand and run again"
        )


def _make_client(endpoint_url: str | None, region: str | None) -> Any:
    """A client that retries chance failures only, and addresses other people's servers by path."""
    import boto3
    from botocore.config import Config

    session = boto3.Session()
    # A server that is not Amazon's has no regions, but a signature needs one.
    region = region or session.region_name or ("us-east-1" if endpoint_url else None)
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 4},
        connect_timeout=10,
        read_timeout=60,
        s3={"addressing_style": "path"} if endpoint_url else {},
    )
    return session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
