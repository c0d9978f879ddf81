"""What a folder that came from elsewhere may hold before anything in it is opened: data, of bounded size, and no code.

A checkpoint or a patch is safetensors and text. A pickle can run code when it is loaded, so its name alone is refused.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, PositiveInt

from warehouse.errors import IntegrityError, RefusedName

#: Endings of files that Python or torch unpickle.
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz"})
#: Endings of files that transformers, or an import, would run.
CODE = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib"})


class Limits(BaseModel):
    """Sizes above which nothing is read. `header_bytes`: of a safetensors file; `total_bytes`: of all files together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    header_bytes: PositiveInt = 32 << 20
    json_bytes: PositiveInt = 256 << 20
    files: PositiveInt = 4096
    total_bytes: PositiveInt = 64 << 30


DEFAULT = Limits()


def refuse_names(names: Iterable[str], *, allow_code: bool = False) -> None:
    """Raises RefusedName for a name that says pickle or, unless allowed, code."""
    for name in names:
        ending = PurePosixPath(name).suffix.lower()
        if ending in PICKLES:
            raise RefusedName(f"{name!r} is a pickle by its name, which can run code when it is loaded; save safetensors")
        if ending in CODE and not allow_code:
            raise RefusedName(f"{name!r} is code; it is taken only where model.trust_remote_code is set")


def check_folder(folder: Path, limits: Limits = DEFAULT, *, allow_code: bool = False) -> None:
    """Look at names, kinds and sizes of everything in a folder; of safetensors at the header, nothing else is opened.

    Raises:
        IntegrityError: a symbolic link or another thing that is no file, a pickle, code, too many or too large files, or
            a safetensors header that is too large or declares other than what is there. Names it, what was found and what
            is allowed.
        OSError: the folder cannot be read.
    """
    if folder.is_symlink():
        raise IntegrityError(f"{folder} is a symbolic link to {folder.readlink()}; give the folder itself")
    num_files = num_bytes = 0
    for place, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            path = Path(place) / name
            kind = path.lstat()
            if stat.S_ISLNK(kind.st_mode):
                raise IntegrityError(f"{path} is a symbolic link to {path.readlink()}, which may lead anywhere; remove it")
            if stat.S_ISDIR(kind.st_mode):
                continue
            if not stat.S_ISREG(kind.st_mode):
                raise IntegrityError(f"{path} is neither a file nor a folder; remove it")
            try:
                refuse_names([name], allow_code=allow_code)
            except ValueError as error:
                raise IntegrityError(f"{folder}: {error}") from error
            num_files, num_bytes = num_files + 1, num_bytes + kind.st_size
            _within(folder, "files", num_files, limits.files, "files")
            _within(folder, "bytes", num_bytes, limits.total_bytes, "total_bytes")
            if path.suffix == ".json":
                _within(path, "bytes", kind.st_size, limits.json_bytes, "json_bytes")
            elif path.suffix == ".safetensors":
                check_header(path, limits)


def check_header(path: Path, limits: Limits = DEFAULT) -> None:
    """Compare what a safetensors file declares with its size, before a loader reserves memory for it.

    Raises:
        IntegrityError: see `check_folder`.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            raise IntegrityError(f"{path} declares a header of {length} bytes and has {max(0, size - 8)} after its length")
        _within(path, "bytes of header", length, limits.header_bytes, "header_bytes")
        try:
            header = json.loads(handle.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            declared = max(map(int, ends), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise IntegrityError(f"{path} has no safetensors header: {error!r}; fetch it again") from error
    if declared != size - 8 - length:
        raise IntegrityError(f"{path} declares {declared} bytes of tensors and has {size - 8 - length}")


def _within(path: Path, what: str, found: int, allowed: int, setting: str) -> None:
    if found > allowed:
        raise IntegrityError(
            f"{path} has {found} {what}, {allowed} are allowed; raise limits.{setting} if you trust where it came from"
        )


def _raise(error: OSError) -> None:
    raise error
