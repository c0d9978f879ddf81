"""Peak memory of a single edit, and of the preparation before it, as shares of the model's bytes."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch

from checks.predictor import Question
from editors.base import Corpus, Editor
from editors.errors import EditorError
from editors.mechanics.passes import trim_heap
from editors.model import EditableModel
from editors.session import batch_of
from tasks.quality.requests import benchmark_requests
from tasks.serving.corpus import calibration
from tasks.speed.case import BenchContext, Case, Meter, Once
from tasks.speed.untuned import costed_editor
from warehouse.records import EditRequest

#: One of each way to edit: banks of values, solutions at keys, running statistics, gradients of a layer, adapters, a memory.
EDITORS = ("ledger", "r_rome", "memit", "ultraedit", "ft_m", "lora", "grace")
#: Between two looks of the thread that watches where the system keeps no mark.
SAMPLE_S = 0.001


class PeakMemory:
    """How far memory rose above where it stood while a block ran, in bytes (`rise`); a context manager.

    On CUDA what torch allocated on that device, exactly. Elsewhere the process's resident memory: unlike torch's own
    counters it has what numpy, LAPACK and the libraries' threads hold too. Before the block free memory goes back to the
    system, so that a copy cannot hide in it. Linux keeps the highest mark itself, anew from the start of the block; where it
    does not allow that, a thread looks once a millisecond, which can miss a shorter peak. Without `/proc` (macOS) only a peak
    above all earlier ones of the process shows.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._stop = Event()
        self._seen = 0
        self._watch: Thread | None = None
        self.start = self.peak = 0

    @property
    def rise(self) -> int:
        return max(0, self.peak - self.start)

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self.start = torch.cuda.memory_allocated(self._cuda)
            return self
        trim_heap()
        self.start = self._seen = _resident()
        if not _mark_anew():
            self._stop.clear()
            self._watch = Thread(target=self._look, daemon=True)
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
            self.peak = torch.cuda.max_memory_allocated(self._cuda)
        elif self._watch is None:
            self.peak = _highest_mark()
        else:
            self._stop.set()
            self._watch.join()
            self._watch, self.peak = None, max(self._seen, _resident())

    def _look(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._seen = max(self._seen, _resident())


@dataclass(frozen=True)
class EditMemory:
    """What one editor took beside the model, in bytes.

    Attributes:
        preparation: the peak while it prepared.
        held: what stood between two edits: the preparation, in the form in which edits use it.
        edit: the peak of one edit, `held` in it.
        seconds: of that edit.
        top: the highest mark in all of it, the model and whatever else the process (on CUDA: the device) holds in it.
        is_tuned: its numbers are this model's, not untuned ones (`untuned.py`).
        refused: why there was no edit; empty where there was one.
    """

    editor: str
    preparation: int
    held: int
    edit: int
    seconds: float
    top: int
    is_tuned: bool = True
    refused: str = ""

    def shares(self, total: int) -> dict[str, Any]:
        """Of `total` bytes, the model's."""
        parts = {"edit": self.edit, "of it held": self.held, "preparation": self.preparation}
        notes = {"untuned": True} if not self.is_tuned else {}
        notes |= {"refused": self.refused} if self.refused else {}
        return {name: round(size / total, 3) for name, size in parts.items()} | notes


def edit_memory(
    make: Callable[[], tuple[Editor, bool]], model: EditableModel, corpus: Corpus, requests: Sequence[EditRequest]
) -> EditMemory:
    """Prepare an editor and make two single edits with it; memory is counted from where it stood with the model alone.

    The second edit is measured: the first loads code, starts threads and reads the preparation into the form in which it is
    used, once for as long as the editor lives. What is prepared is not kept on disk.

    Args:
        make: the editor, new, so that nothing of an earlier run is held by it; and whether its numbers are this model's.
        requests: two, of different subjects.
    """
    first, second = requests
    name, reason, start = "", "", 0.0
    with PeakMemory(model.device) as before:
        try:
            editor, is_tuned = make()
            name = editor.card.name
            prepared = editor.prepare(model, corpus)
        except EditorError as error:
            return EditMemory(name, 0, 0, 0, 0.0, 0, refused=str(error))
    with suppress(EditorError):
        editor.edit(model, batch_of([first]), prepared)
    with PeakMemory(model.device) as during:
        start = time.perf_counter()
        try:
            editor.edit(model, batch_of([second]), prepared)
        except EditorError as error:
            reason = str(error)
        seconds = time.perf_counter() - start
    held, peak = (max(0, size - before.start) for size in (during.start, during.peak))
    return EditMemory(name, before.rise, held, peak, seconds, max(before.peak, during.peak), is_tuned, reason)


def peak_memory(context: BenchContext) -> Case:
    """The case `peak-memory`: of each of `EDITORS`, as shares of the model's bytes."""
    model, settings = context.model, context.settings
    requests = benchmark_requests(context.world, model, "modification", 2, split="all", seed=0)
    corpus = calibration(context.world).corpus
    total = model.num_bytes
    model.score([Question(requests[0].prompt, requests[0].target_new)])

    def once() -> Once:
        found: list[EditMemory] = []
        with Meter(model) as meter:
            for name in EDITORS:
                own = settings.editor.overrides if name == settings.editor.name else {}
                make = partial(costed_editor, name, model, {"seed": settings.seed, **own}, settings.presets)
                found.append(edit_memory(make, model, corpus, requests))
        if model.device.type != "cuda":
            # The meter's own mark began anew with each block inside.
            meter.peak_mb = max(meter.peak_mb, *(each.top / 2**20 for each in found))
        made = [each for each in found if not each.refused]
        details: dict[str, Any] = {name: each.shares(total) for name, each in zip(EDITORS, found, strict=True)}
        details["model, bytes"] = total
        details["largest edit"] = max((each.edit for each in made), default=0) / total
        return Once(edits=len(made), probes=0, meter=meter, edit_s=sum(each.seconds for each in made) or None, details=details)

    return Case(", ".join(EDITORS), once)


def _mark_anew() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _highest_mark() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _resident() -> int:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
