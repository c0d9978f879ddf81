"""The checkpoint store: its interface, and the names of what lies in it.

Everything is create-only and known by its sha256, except the small pointers under `channels/`, which move by
compare-and-swap. Two implementations share one contract suite, `tests/warehouse/test_object_store.py`:
`directory.DirectoryStore` and `s3.S3Store`.

Layout:

    patches/<patch_digest>/patch.safetensors, patch.json
    reports/<report_id>.json            decisions/<decision_id>.json
    manifests/<checkpoint_id>.json      checkpoints/<checkpoint_id>/<files of a Hugging Face directory>
    rejected/<checkpoint_id>/manifest.json, report.json, decision.json, reasons.json, patches/...
    canaries/<digest of the set>.json   channels/<name>.json
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NewType

from warehouse.digests import sha256_bytes, sha256_file
from warehouse.errors import Conflict, LineageMoved, NotFound, RefusedName, WarehouseError

CHUNK_BYTES = 1 << 20
# S3 allows 1,024 bytes for prefix and key together; file systems allow 255 for one name.
MAX_KEY_BYTES = 900
MAX_NAME_BYTES = 255
# The directory store keeps temporary and lock files here, so no key may begin with it in either store.
RESERVED = ".store"

Version = NewType("Version", str)
"""The name of one state of a key, for compare-and-swap: a content digest or an ETag. Only equality means something."""


class StoreUnavailable(WarehouseError):
    """The store could not be reached or was too busy: the one failure of a store that trying again may cure."""


class ObjectStore(ABC):
    """Create-only objects by key, and compare-and-swap for the few keys that move.

    Every method raises RefusedName for a key that `validate_key` refuses, StoreUnavailable where the store cannot be
    reached, and WarehouseError where it refuses (no rights, disk full, no such bucket).
    """

    url: str

    @abstractmethod
    def create(self, key: str, data: bytes | Path) -> None:
        """Store bytes, or a local file's bytes, under a new key; nobody ever sees a half-written object.

        When this returns, the stored bytes were read back and have the digest of `data`. The same content again
        does nothing.

        Raises:
            Conflict: the key holds other content.
            IntegrityError: what was read back is not what was written.
            NotFound: `data` is a path and no file is there.
        """

    @abstractmethod
    def stream(self, key: str) -> Iterator[bytes]:
        """The object in pieces.

        Raises:
            NotFound: no object has this key (raised by the call or by the first piece).
        """

    def sweep(self) -> int:
        """Remove what killed writers left beside the objects, and nothing that a living one still writes.

        Returns:
            How many files were removed; none where the store cleans up by itself.
        """
        return 0

    @abstractmethod
    def exists(self, key: str) -> bool: ...

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys that begin with this text, in code point order."""

    @abstractmethod
    def read_versioned(self, key: str) -> tuple[bytes, Version]:
        """The bytes and the version to hand to `compare_and_swap`; NotFound where there are none."""

    @abstractmethod
    def compare_and_swap(self, key: str, expected: Version | None, data: bytes) -> Version:
        """Replace the object if it is still at `expected` (None: if it is not there), read back, give the new version.

        A key that already holds exactly `data` counts as success: that is what a retry sees whose first answer
        was lost on the way.

        Raises:
            Conflict: somebody moved the key first; nothing was changed.
            IntegrityError: what was read back is not what was written.
        """

    def read(self, key: str, max_bytes: int | None = None) -> bytes:
        """The whole object; WarehouseError where it is larger than `max_bytes`."""
        return b"".join(limited(self, key, max_bytes))

    def read_to(self, key: str, path: Path, max_bytes: int | None = None) -> str:
        """Write the object to a new local file, in pieces, and return the sha256 of what was written.

        Raises:
            NotFound: no object has this key.
            WarehouseError: it is larger than `max_bytes`, or the file cannot be written.
        """
        total = hashlib.sha256()
        try:
            with path.open("xb") as handle:
                for piece in limited(self, key, max_bytes):
                    total.update(piece)
                    handle.write(piece)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise WarehouseError(f"could not write {path} (from {self.url}, {key}): {error.strerror or error}") from error
        return total.hexdigest()

    def digest(self, key: str) -> str:
        """sha256 of the stored bytes, computed from the bytes and never from what the store says of them."""
        total = hashlib.sha256()
        for piece in self.stream(key):
            total.update(piece)
        return total.hexdigest()


def limited(store: ObjectStore, key: str, max_bytes: int | None) -> Iterator[bytes]:
    """`store.stream(key)`, stopped with a WarehouseError at the first piece that passes `max_bytes`."""
    seen = 0
    for piece in store.stream(key):
        seen += len(piece)
        if max_bytes is not None and seen > max_bytes:
            raise WarehouseError(
                f"{key} in {store.url} is larger than the limit of {max_bytes} bytes; "
                "raise max_bytes if a file of that size is expected here"
            )
        yield piece


# ---------------------------------------------------------------- keys


def validate_key(key: str) -> str:
    """Give the key back if it is a plain relative POSIX path that is safe in a directory and in S3.

    Raises:
        RefusedName: absolute, empty, with `.` or `..` or an empty part, a backslash, a control character,
            too long, or inside the reserved folder.
    """
    parts = key.split("/")
    if not key:
        fault = "it is empty"
    elif key.startswith("/"):
        fault = "it is absolute"
    elif "\\" in key:
        fault = "it has a backslash"
    elif any(unicodedata.category(character) in ("Cc", "Cs") for character in key):
        fault = "it has a control character or a lone surrogate"
    elif any(part in ("", ".", "..") for part in parts):
        fault = "it has an empty part, '.' or '..'"
    elif len(key.encode()) > MAX_KEY_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        fault = f"it is longer than {MAX_KEY_BYTES} bytes, or one part than {MAX_NAME_BYTES}"
    elif parts[0] == RESERVED:
        fault = f"{RESERVED}/ is reserved for the store itself"
    else:
        return key
    raise RefusedName(f"store key {key[:200]!r} is refused: {fault}; use a plain relative path such as patches/ab12/patch.json")


def validate_prefix(prefix: str) -> str:
    """Like `validate_key` for the beginning of a key: may be empty and may end in a slash."""
    if prefix:
        validate_key(prefix.removesuffix("/"))
    return prefix


def _one_part(value: str, what: str) -> str:
    if "/" in value:
        raise RefusedName(f"{what} {value!r} has a slash, so it cannot name one object of the store")
    return validate_key(value)


def patch_key(patch_digest: str, name: str) -> str:
    return validate_key(f"patches/{_one_part(patch_digest, 'patch digest')}/{_one_part(name, 'patch file')}")


def report_key(report_id: str) -> str:
    return validate_key(f"reports/{_one_part(report_id, 'report id')}.json")


def decision_key(decision_id: str) -> str:
    return validate_key(f"decisions/{_one_part(decision_id, 'decision id')}.json")


def canaries_key(digest: str) -> str:
    return validate_key(f"canaries/{_one_part(digest, 'digest of canaries')}.json")


def manifest_key(checkpoint_id: str) -> str:
    return validate_key(f"manifests/{_one_part(checkpoint_id, 'checkpoint id')}.json")


def checkpoint_key(checkpoint_id: str, path: str) -> str:
    """`path` is the file's place inside the Hugging Face directory."""
    return validate_key(f"checkpoints/{_one_part(checkpoint_id, 'checkpoint id')}/{path}")


def rejected_key(checkpoint_id: str, path: str) -> str:
    return validate_key(f"rejected/{_one_part(checkpoint_id, 'checkpoint id')}/{path}")


def channel_key(channel: str) -> str:
    return validate_key(f"channels/{_one_part(channel, 'channel')}.json")


# ---------------------------------------------------------------- shared by the implementations


def source_digest(data: bytes | Path) -> str:
    """sha256 of bytes or of a local file; NotFound where the path is not a file."""
    if isinstance(data, bytes):
        return sha256_bytes(data)
    if not data.is_file():
        raise NotFound(f"there is no file {data} to put into the store")
    return sha256_file(data)


def create_conflict(url: str, key: str, wanted: str, found: str) -> Conflict:
    return Conflict(
        f"{key} in {url} exists with other content (sha256 {found}, not {wanted}); objects are create-only: "
        "publish what is there, or store the new content under its own name"
    )


def swap_conflict(url: str, key: str, expected: Version | None, found: Version | None) -> LineageMoved:
    return LineageMoved(
        f"lineage moved: {key} in {url} is at {found or 'nothing'}, not at {expected or 'nothing'} as expected; "
        "read it again, rebase on what is there and gate again"
    )
