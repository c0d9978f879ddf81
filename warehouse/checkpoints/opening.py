"""A checkpoint store by its address."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from warehouse.checkpoints.directory import DirectoryStore
from warehouse.checkpoints.object_store import ObjectStore
from warehouse.checkpoints.s3 import S3Store
from warehouse.errors import UsageError


def s3_endpoint() -> str:
    """The address of a server that is not Amazon's, from where boto3 looks for it; empty where there is none."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def open_store(url: str) -> ObjectStore:
    """A store by its address: `file:///path` or a plain path, or `s3://bucket/prefix`.

    For S3, endpoint, region and credentials come from where boto3 looks for them; AWS_ENDPOINT_URL_S3 and
    AWS_ENDPOINT_URL name a server that is not Amazon's.

    Raises:
        UsageError: another scheme, or a part is missing.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"store address {url!r}: {error}; give a folder or s3://bucket/prefix") from error
    if "://" not in url:
        if not url:
            raise UsageError("the store's address is empty; give a folder or s3://bucket/prefix")
        return DirectoryStore(Path(url).expanduser())
    if parts.query or parts.fragment:
        raise UsageError(
            f"store address {url!r} has a '?' or '#'; write %3F and %23 in a file address, and choose a prefix without them"
        )
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise UsageError(f"store address {url!r}: a file address has three slashes, as in file:///srv/errata")
        return DirectoryStore(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        if not parts.netloc:
            raise UsageError(f"store address {url!r} names no bucket; write s3://bucket/prefix")
        endpoint = s3_endpoint()
        try:
            return S3Store(parts.netloc, parts.path.strip("/"), endpoint_url=endpoint or None)
        except ValueError as error:
            raise UsageError(f"store address {url!r} at {endpoint or 'Amazon'}: {error}") from error
    raise UsageError(f"store address {url!r} has the scheme {parts.scheme!r}; known are file://, s3:// and a plain path")
