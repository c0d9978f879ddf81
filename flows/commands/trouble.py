"""Troubles of the machine that come as somebody else's exception: a full disk, and Prefect's server that does not answer."""

from __future__ import annotations

import errno
import os
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Below this a disk counts as full: SQLite and DuckDB need some for their journals.
LITTLE_BYTES = 64 * 2**20
_BELOW_CLIENT = ("httpx", "httpcore", "anyio", "builtins")


def trouble_of(error: BaseException) -> str:
    """What is wrong and what to do, for an error that is the machine's; "" for any other."""
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, OSError) and one.errno in NO_SPACE:
            where = one.filename or "the disk"
            return f"no space left for {where} ({one.strerror}): make room there, then run the command again"
    return _server_trouble(error) if any(_is_of_server(one) for one in chain) else ""


def _is_of_server(error: BaseException) -> bool:
    """Whether it came of talking to Prefect's server: Prefect's own error, or one of the network below its client."""
    home = type(error).__module__.partition(".")[0]
    if home == "prefect" or (isinstance(error, RuntimeError) and "Prefect API" in str(error)):
        return True
    frames = traceback.walk_tb(error.__traceback__)
    return home in _BELOW_CLIENT and any(f.f_globals.get("__name__", "").startswith("prefect.client") for f, _ in frames)


def _server_trouble(error: BaseException) -> str:
    if url := os.environ.get("PREFECT_API_URL"):
        return f"the Prefect server at {url} does not do its work ({_short(error)}): look at it, then run the command again"
    home = os.environ.get("PREFECT_HOME", "~/.prefect")
    free = _free_bytes(Path(home).expanduser())
    if (free is not None and free < LITTLE_BYTES) or "is full" in _said(error):
        room = "no room" if free is None else f"{free / 2**20:.0f} MiB free"
        return (
            f"Prefect's server keeps its state in {home}, whose disk is full ({room}): make room there, or set PREFECT_HOME to "
            "another disk, then run the command again"
        )
    return (
        f"Prefect's local server does not do its work ({_short(error)}). Its state is in {home}: see that the disk has room "
        "and the folder can be written, then run the command again"
    )


def _said(error: BaseException) -> str:
    """The error's text, with the body of an answer where there is one."""
    answer = getattr(error, "response", None)
    return f"{error} {getattr(answer, 'text', '')}"


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."


def _free_bytes(folder: Path) -> int | None:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
