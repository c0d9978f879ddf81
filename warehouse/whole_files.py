"""Files and folders that are there whole or not at all: written beside their name, synced to the disk, then renamed.

What a killed process leaves is named `NAME.PROCESS-THREAD.new`, so that a sweep can tell it from what is being written.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: How the name of what is being written ends.
SUFFIX = ".new"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write the file to; at the end it has the name `path`, in place of what had it.

    Where the block raises, what it wrote is removed and `path` is as before. The folder is made where it is missing.

    Raises:
        OSError: it cannot be written, or the block left no file.
    """
    fresh = _beside(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        fresh.unlink(missing_ok=True)
        yield fresh
        sync(fresh)
        fresh.replace(path)
        sync(path.parent)
    finally:
        # After the rename there is nothing of this name.
        fresh.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """`whole_file` of these bytes."""
    with whole_file(path) as fresh:
        fresh.write_bytes(data)


@contextmanager
def whole_folder(path: Path, *, over: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill; at the end it has the name `path`, which nobody had or an empty folder.

    Args:
        over: a folder with content is removed first. A kill between the two leaves neither, so this is for what can be
            made again.

    Raises:
        OSError: it cannot be written, or `path` has content and `over` is not set.
    """
    fresh = _beside(path)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        for folder, _, files in os.walk(fresh):
            for name in files:
                sync(Path(folder, name))
            sync(Path(folder))
        if over and path.exists():
            shutil.rmtree(path)
        fresh.replace(path)
        sync(path.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def is_left_over(path: Path) -> bool:
    """Whether what is written there has lost its writer: the process named in `NAME.PROCESS-THREAD.new` is gone.

    A name without a process is one that nothing writes any more.
    """
    process, _, thread = (path.suffixes[-2][1:] if len(path.suffixes) > 1 else "").partition("-")
    if not process.isdecimal():
        return True
    if int(process) == os.getpid():
        # An earlier process had the same id, or an earlier thread of this one.
        return thread not in {str(living.native_id) for living in threading.enumerate()}
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _beside(path: Path) -> Path:
    path = path.absolute()
    # By thread too: two lineages of one machine, or two tasks of one process, may write the same patch at once.
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_native_id()}{SUFFIX}")


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
