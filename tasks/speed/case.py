"""What a case of the speed benchmark is: what it works on, what it gives back, and the meter that counts its cost."""

from __future__ import annotations

import gc
import logging
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from editors.model import EditableModel
from tasks.settings import Settings
from warehouse.database.connection import Warehouse
from warehouse.records import Record

log = logging.getLogger(__name__)


class Comparison(Record):
    """The slow form beside ours, in seconds for one edit or probe; `ratio` is how many times longer it takes."""

    baseline: str
    items: int
    baseline_s: float
    ours_s: float
    ratio: float
    note: str = ""


class Sizes(Record):
    """How much each case does; the names of the cases promise the defaults. `plain_*`: items for the slow form."""

    edits: int = 32
    plain_edits: int = 6
    memit_edits: int = 100
    plain_memit_edits: int = 4
    held_edits: int = 200
    next_edits: int = 8
    plain_next_edits: int = 2
    probes: int = 2_000
    plain_probes: int = 200
    few_shot: int = 600
    night_edits: int = 500
    night_probes: int = 5_000
    stream_events: int = 50_000
    scale_edits: tuple[int, ...] = (100, 1_000, 10_000)
    scale_probes: int = 100_000
    scale_tonight: int = 50


@dataclass(frozen=True)
class BenchContext:
    """What a case works on: the bare base model and the world before the first night."""

    model: EditableModel
    world: Warehouse
    settings: Settings
    sizes: Sizes = field(default_factory=Sizes)


@dataclass(frozen=True)
class Passes:
    forward: int
    suffix: int
    backward: int


@dataclass(frozen=True)
class Once:
    """One repeat: what was done and what it cost."""

    edits: int
    probes: int
    meter: Meter
    patch_bytes: int = 0
    parts: Mapping[str, float] = field(default_factory=dict)
    edit_s: float | None = None
    probe_s: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A case made ready: preparation and requests are done and are not measured.

    Attributes:
        once: does the work one time.
        compare: runs the slow form, given the last repeat.
    """

    editor: str
    once: Callable[[], Once]
    compare: Callable[[Once], Sequence[Comparison]] = lambda _: ()


class Meter:
    """Seconds, passes and memory of a block of work on one model; a context manager."""

    def __init__(self, model: EditableModel) -> None:
        self._model = model
        self._inside = 0
        self._since = 0.0
        self._forward = self._suffix = self._backward = 0
        self._handles: list[Any] = []
        self.wall_s = self.cpu_s = self.model_s = self.peak_mb = 0.0

    def __enter__(self) -> Meter:
        hf, anatomy = self._model.hf, self._model.anatomy
        norm, head = hf.get_submodule(anatomy.final_norm), hf.get_output_embeddings()
        assert head is not None, "a causal model has a head"
        for module in (hf.base_model, head):
            self._handles += [
                module.register_forward_pre_hook(self._enter(module is hf.base_model)),
                # A trace may leave the model half way by an exception: that pass has ended too.
                module.register_forward_hook(self._leave(module is hf.base_model), always_call=True),
            ]
        self._handles.append(norm.register_forward_hook(self._normed))
        gc.collect()
        _reset_peak()
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s, self.cpu_s = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self.peak_mb = _peak_mb()
        for handle in self._handles:
            handle.remove()

    @property
    def passes(self) -> Passes:
        return Passes(self._forward, self._suffix, self._backward)

    def _enter(self, is_whole: bool) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._inside += is_whole
            self._forward += is_whole
            self._since = time.perf_counter()

        return hook

    def _leave(self, is_whole: bool) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._inside -= is_whole
            self.model_s += time.perf_counter() - self._since

        return hook

    def _normed(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """The final norm ends every pass, also one of the upper layers alone; every backward pass begins behind it."""
        self._suffix += not self._inside
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(self._went_back)

    def _went_back(self, _gradient: Tensor) -> None:
        self._backward += 1


def _reset_peak() -> None:
    """Linux counts the peak of resident memory anew after this; elsewhere it stays the whole process's."""
    path = Path("/proc/self/clear_refs")
    try:
        path.write_text("5")
    except OSError as error:
        log.debug("peak memory counts from the start of the process: %s", error)


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
