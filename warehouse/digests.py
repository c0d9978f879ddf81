"""Identities by content: equal digests mean equal content, whatever the file names and the order of writing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel


def sha256_bytes(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Digest of a file's bytes, read in pieces so that its size does not matter."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """One byte form for one value: sorted keys, no spaces, UTF-8, pydantic models by their JSON form.

    Raises:
        ValueError: a float is NaN or infinite, which JSON cannot hold.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return _CANONICAL.encode(value).encode("utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"a {type(value).__name__} has no canonical JSON form")


#: Made once: digests are taken by the hundred thousand, and `json.dumps` makes an encoder for each call.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)


def digest_of(*values: Any) -> str:
    """sha256 over the canonical JSON of all values, in order."""
    return sha256_bytes(canonical_json(list(values)))


def digest_of_parts(parts: Iterable[tuple[str, bytes | memoryview | Callable[[], bytes | memoryview]]]) -> str:
    """sha256 over named byte strings, sorted by name; names and lengths are part of it, so no two layouts collide.

    A string may be given as a function that makes it: it is called in its turn, so that one of them at a time is held.
    """
    total = hashlib.sha256()
    for name, given in sorted(parts, key=lambda part: part[0]):
        data = given() if callable(given) else given
        total.update(f"{len(name)}:{name}:{len(data)}:".encode())
        total.update(data)
    return total.hexdigest()
