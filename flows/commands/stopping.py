"""Ctrl-C and SIGTERM end a command in one sentence, and a night at once: whatever it has done is kept, as after a kill.

Inside a flow Prefect has a handler of its own, which talks to its server first, and on Ctrl-C that server is stopped as
well: a traceback of hundreds of lines. So the signal is read beside all handlers, from the descriptor that Python writes
it to, and the process ends there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM."""


class _State:
    received: int | None = None
    num_at_once = 0
    #: Whether this process is the command itself, and not one that calls a command, whose server is its own.
    is_program = False


def received() -> int | None:
    """The signal that asked this process to stop, None where none did."""
    return _State.received


@contextmanager
def at_once() -> Iterator[None]:
    """Work that may end anywhere, such as a night: a signal does not wait for it."""
    _State.num_at_once += 1
    try:
        yield
    finally:
        _State.num_at_once -= 1


def listen(end: Callable[[int], None]) -> None:
    """Raise `Stopped` in the main thread on a signal; within `at_once`, call `end(signum)`, which must not return."""
    _State.is_program = True
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _handle)
    threading.Thread(target=_watch, args=(read, end), name="signals", daemon=True).start()


def _handle(number: int, _: FrameType | None) -> None:
    _State.received = number
    if not _State.num_at_once:
        raise Stopped


def _watch(descriptor: int, end: Callable[[int], None]) -> None:
    while data := os.read(descriptor, 1):
        if data[0] in SIGNALS and _State.num_at_once:
            _State.received = data[0]
            end(data[0])


def stop_server(patience_s: float = 5.0) -> bool:
    """End Prefect's temporary server, which must neither outlive us nor speak after us; False where none was running."""
    module, was_running = sys.modules.get("prefect.server.api.server"), False
    if module is None or not _State.is_program:
        return False
    for server in list(module.SubprocessASGIServer._instances.values()):
        process = server.server_process
        if process is None or process.poll() is not None:
            continue
        was_running = True
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return was_running


def how_far() -> tuple[str, str]:
    """How far a night under way has come, in words, and the command that goes on with it; empty where there is none."""
    module = sys.modules.get("tasks.night.course")
    night = module.under_way() if module is not None else None
    if night is None:
        return "", ""
    place = f"after `{night.reached}`" if night.reached else "before `received`"
    return place, night.command
