"""A checkpoint store in a directory: whole files appear at once, or not at all.

An object is written to a temporary file, synced, read back, and linked to its name, which fails if the name is
taken. A kill leaves at most a temporary file under `.store/tmp`, which nothing reads. Locks are `flock`, so they end
with the process that held them; on a network file system they need one that honours `flock`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, final

from warehouse.checkpoints.object_store import (
    CHUNK_BYTES,
    RESERVED,
    ObjectStore,
    Version,
    create_conflict,
    source_digest,
    swap_conflict,
    validate_key,
    validate_prefix,
)
from warehouse.digests import sha256_bytes, sha256_file
from warehouse.errors import Conflict, IntegrityError, NotFound, WarehouseError
from warehouse.whole_files import sync

# What file systems without hard links answer to link(2).
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@final
class DirectoryStore(ObjectStore):
    """Objects as files below `root`, which is made on the first write."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).resolve()
        self.url = self.root.as_uri()

    def create(self, key: str, data: bytes | Path) -> None:
        path = self._path(key)
        wanted = source_digest(data)
        with self._io("write", key):
            if path.is_dir():
                raise IsADirectoryError(path)
            if not path.is_file():
                self._make_folder(path.parent)
                with self._temporary(key, data, wanted) as temporary:
                    self._link(temporary, path, key)
            sync(path.parent)
        found = self.digest(key)
        if found != wanted:
            raise create_conflict(self.url, key, wanted, found)

    def stream(self, key: str) -> Iterator[bytes]:
        path = self._path(key)
        try:
            handle = path.open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"no object {key} in {self.url}") from None
        except OSError as error:
            raise self._failed("read", key, error) from error
        with handle, self._io("read", key):
            while piece := handle.read(CHUNK_BYTES):
                yield piece

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> Iterator[str]:
        """Sorted keys; IntegrityError at a symbolic link."""
        validate_prefix(prefix)
        start = self.root / prefix.rpartition("/")[0]
        found = []
        for folder, names, files in os.walk(start):
            here = Path(folder)
            if here == self.root:
                names[:] = [name for name in names if name != RESERVED]
            for name in (*files, *(name for name in names if (here / name).is_symlink())):
                key = (here / name).relative_to(self.root).as_posix()
                if key.startswith(prefix):
                    self._inside(here / name, key)
                    if (here / name).is_file():
                        found.append(key)
        yield from sorted(found)

    def read_versioned(self, key: str) -> tuple[bytes, Version]:
        # One open file is one state: a swap renames a new file over the name and leaves the open one alone.
        data = self.read(key)
        return data, Version(sha256_bytes(data))

    def compare_and_swap(self, key: str, expected: Version | None, data: bytes) -> Version:
        path = self._path(key)
        wanted = Version(sha256_bytes(data))
        with self._io("write", key):
            self._make_folder(path.parent)
            with self._lock(key):
                found = self.read_versioned(key)[1] if path.is_file() else None
                if found == wanted:
                    return wanted
                if found != expected:
                    raise swap_conflict(self.url, key, expected, found)
                with self._temporary(key, data, wanted) as temporary:
                    temporary.replace(path)
                sync(path.parent)
        return wanted

    # ------------------------------------------------------------ paths

    def _path(self, key: str) -> Path:
        return self._inside(self.root / validate_key(key), key)

    def _inside(self, path: Path, key: str) -> Path:
        """The path, if nothing on the way is a symbolic link: one object has one name, and lies below the root."""
        try:
            target = path.resolve()
        except (OSError, RuntimeError) as error:
            raise IntegrityError(f"{key} in {self.url} cannot be followed: {error}") from error
        if not target.is_relative_to(self.root):
            raise IntegrityError(f"{key} in {self.url} is a symbolic link that leaves the store, to {target}; remove it")
        if target != path:
            raise IntegrityError(f"{key} in {self.url} is a symbolic link to {target}; put the object itself there")
        return path

    def _own_folder(self, name: str) -> Path:
        folder = self._inside(self.root / RESERVED / name, f"{RESERVED}/{name}")
        self._make_folder(folder)
        return folder

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and sync every parent that got a new entry."""
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            sync(path.parent)

    # ------------------------------------------------------------ writing

    @contextmanager
    def _temporary(self, key: str, data: bytes | Path, wanted: str) -> Iterator[Path]:
        """A synced file with the content, already read back; gone afterwards, whatever happened.

        Raises:
            IntegrityError: the file does not hold what was written to it.
        """
        path, handle = self._scratch_file()
        try:
            with handle:
                for piece in _pieces(data):
                    handle.write(piece)
                handle.flush()
                os.fsync(handle.fileno())
                found = sha256_file(path)
                if found != wanted:
                    raise IntegrityError(
                        f"{key} in {self.url}: wrote sha256 {wanted} and read back {found}; nothing was stored. "
                        "Check the disk, or whether the source file changes while it is copied"
                    )
                yield path
        finally:
            path.unlink(missing_ok=True)

    def _scratch_file(self) -> tuple[Path, BinaryIO]:
        """A new file, locked for as long as it is open: `sweep` leaves a locked file alone."""
        while True:
            path = self._own_folder("tmp") / uuid.uuid4().hex
            handle = path.open("xb")
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle.fileno()).st_nlink:
                return path, handle
            # Swept away between the two calls.
            handle.close()

    def sweep(self) -> int:
        folder, removed = self.root / RESERVED / "tmp", 0
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            try:
                with path.open("rb") as handle:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
                    removed += 1
            except (BlockingIOError, FileNotFoundError):
                continue
        return removed

    def _link(self, temporary: Path, path: Path, key: str) -> None:
        """Give the file its name unless the name is taken, in one step."""
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # Without hard links every writer comes this way, so the lock makes check and rename one step.
            with self._lock(key):
                if not path.exists():
                    temporary.rename(path)

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        # Never deleted: removing a lock file lets two holders each lock their own copy of the name.
        with (self._own_folder("locks") / sha256_bytes(key.encode())).open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _io(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
            raise Conflict(f"{key} in {self.url}: another object is a folder of this name, or the reverse") from error
        except OSError as error:
            raise self._failed(verb, key, error) from error

    def _failed(self, verb: str, key: str, error: OSError) -> WarehouseError:
        reason = error.strerror or str(error)
        return WarehouseError(f"could not {verb} {key} in {self.url}: {reason}; check space and rights, then run again")


def _pieces(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as handle:
        while piece := handle.read(CHUNK_BYTES):
            yield piece
