"""Files of tensors that say whether they are whole: a digest before the content, written beside the name and renamed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from warehouse.whole_files import write_whole

log = logging.getLogger(__name__)
#: Bytes of the digest.
HEAD = hashlib.sha256().digest_size


def write_sealed(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors behind the digest of their file; the name has all of it or what it had before."""
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    write_whole(path, hashlib.sha256(content).digest() + content)


def read_sealed(path: Path) -> dict[str, Tensor] | None:
    """The tensors; None where there is no such file, or one that is not what was written: that one is removed."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(data[HEAD:]).digest() != data[:HEAD]:
        log.warning("%s is damaged and is removed; what it held is computed anew", path)
        path.unlink(missing_ok=True)
        return None
    return load(data[HEAD:])
