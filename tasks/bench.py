"""The speed benchmark: what an edit, an evaluation and a night cost, and how much slower the obvious form is.

Ratios are measured side by side: the slow form (`tasks/bench_plain.py`) runs in the same process, on the same model,
over some of the same edits or probes, and seconds for each of them are compared.
"""

from __future__ import annotations

import gc
import logging
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editors.model import EditableModel
from tasks.benchmark_requests import base_world
from tasks.models import base_model, shown_name
from tasks.settings import Settings
from tasks.workspace import warehouse
from warehouse.errors import UsageError
from warehouse.records import Record
from warehouse.reports import save_benchmark
from warehouse.store import Warehouse

log = logging.getLogger(__name__)

CASES = ("edit-r_rome", "edit-memit-100", "edit-grace", "sequence-malmen", "evaluate", "nightly-500", "ingest")


class Spread(Record):
    """Of the repeats: the median, the smallest and the largest."""

    median: float
    low: float
    high: float


class Comparison(Record):
    """The slow form beside ours, in seconds for one edit or probe; `ratio` is how many times longer it takes."""

    baseline: str
    items: int
    baseline_s: float
    ours_s: float
    ratio: float
    note: str = ""


class BenchResult(Record):
    """One case. Passes count a whole run of the model (`forward`), a run of the layers above an edit only (`suffix`),
    and runs backwards.

    Attributes:
        peak_rss_mb: the process's peak while the work was done; `model_mb` is what it held before.
        parts: seconds of each step, where a case has steps.
        ratio: of the first comparison.
    """

    case: str
    editor: str
    model: str
    model_digest: str
    threads: int
    repeat: int
    edits: int
    probes: int
    wall_s: Spread
    cpu_s: Spread
    edits_per_s: Spread | None
    probes_per_s: Spread | None
    peak_rss_mb: Spread
    model_mb: float
    forward_passes: int
    suffix_passes: int
    backward_passes: int
    patch_bytes: int
    parts: dict[str, Spread]
    comparisons: tuple[Comparison, ...]
    ratio: float | None
    details: dict[str, Any]
    environment: dict[str, str]
    created_at: datetime


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
    night_edits: int = 500
    night_probes: int = 5_000
    stream_events: int = 50_000


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


def run_case(name: str, settings: Settings, threads: int = 0, repeat: int = 3, sizes: Sizes | None = None) -> BenchResult:
    """Measure one case and append the result to the warehouse.

    Args:
        threads: of the arithmetic; 0: as torch is set up.

    Raises:
        UsageError: no such case, or fewer than one repeat.
        NotEnoughFacts: the world holds fewer facts than the case edits.
    """
    model = base_model(settings)
    with _threads(threads), base_world(settings) as world:
        result = measure_case(name, BenchContext(model, world, settings, sizes or Sizes()), repeat)
    with warehouse(settings) as wh:
        save_benchmark(wh, f"speed:{name}", result.editor, "", result.model_dump(mode="json"), result.created_at)
    return result


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_case(name: str, context: BenchContext, repeat: int = 3) -> BenchResult:
    """Measure one case; the model is the bare base before and after.

    Raises:
        UsageError: no such case, or fewer than one repeat.
    """
    # Imported here: the cases need the records of this module.
    from tasks.bench_cases import CASE_BUILDERS

    if name not in CASE_BUILDERS:
        raise UsageError(f"no benchmark case {name!r}; there are {', '.join(CASES)}")
    if repeat < 1:
        raise UsageError(f"repeat is {repeat}; a case is measured at least once")
    model = context.model
    model.rollback(0)
    case = CASE_BUILDERS[name](context)
    with Meter(model) as idle:
        pass
    try:
        runs = [case.once() for _ in range(repeat)]
        comparisons = tuple(case.compare(runs[-1]))
    finally:
        model.rollback(0)
    last = runs[-1]
    log.info("%s: %.2f s (median of %d)", name, statistics.median(r.meter.wall_s for r in runs), repeat)
    return BenchResult(
        case=name, editor=case.editor, model=shown_name(model), model_digest=model.base_digest,
        threads=torch.get_num_threads(), repeat=repeat, edits=last.edits, probes=last.probes,
        wall_s=_spread(r.meter.wall_s for r in runs), cpu_s=_spread(r.meter.cpu_s for r in runs),
        edits_per_s=_rates(runs, lambda r: (r.edits, r.edit_s)),
        probes_per_s=_rates(runs, lambda r: (r.probes, r.probe_s)),
        peak_rss_mb=_spread(r.meter.peak_mb for r in runs), model_mb=idle.peak_mb,
        forward_passes=last.meter.passes.forward, suffix_passes=last.meter.passes.suffix,
        backward_passes=last.meter.passes.backward, patch_bytes=last.patch_bytes,
        parts={part: _spread(r.parts[part] for r in runs) for part in last.parts}, comparisons=comparisons,
        ratio=comparisons[0].ratio if comparisons else None, details=dict(last.details),
        environment={"torch": version("torch"), "transformers": version("transformers"),
                     "python": platform.python_version(), "machine": platform.machine()},
        created_at=datetime.now(UTC),
    )  # fmt: skip


def _spread(values: Any) -> Spread:
    found = list(values)
    return Spread(median=statistics.median(found), low=min(found), high=max(found))


def _rates(runs: Sequence[Once], of: Callable[[Once], tuple[int, float | None]]) -> Spread | None:
    """Items in each second of the step that handles them; None where the case has none."""
    pairs = [of(run) for run in runs]
    found = [count / seconds for count, seconds in pairs if count and seconds]
    return _spread(found) if found else None


def result_lines(result: BenchResult) -> list[tuple[str, str]]:
    """(name, value with unit and spread) for people."""
    lines = [("editor", result.editor)] if result.editor else []
    lines += [("edits", f"{result.edits:,}")] if result.edits else []
    lines += [("probes", f"{result.probes:,}")] if result.probes else []
    for name, spread, unit in (
        ("edits/s", result.edits_per_s, ""), ("probes/s", result.probes_per_s, ""), ("wall", result.wall_s, " s"),
        ("CPU", result.cpu_s, " s"), ("peak memory", result.peak_rss_mb, " MB"),
    ):  # fmt: skip
        if spread is not None:
            lines.append((name, f"{spread.median:,.4g}{unit} ({spread.low:,.4g} to {spread.high:,.4g})"))
    lines.append(("memory before", f"{result.model_mb:,.4g} MB"))
    counts = f"{result.forward_passes} whole, {result.suffix_passes} above the edit only"
    lines.append(("passes", f"{counts}, {result.backward_passes} backward"))
    lines += [("patch", f"{result.patch_bytes:,} bytes")] if result.patch_bytes else []
    lines += [(f"  {name}", f"{spread.median:.3g} s") for name, spread in result.parts.items()]
    lines += [
        (
            f"ratio to {c.baseline}",
            f"{c.ratio:.1f}x over {c.items} of them ({c.baseline_s:.3g} s against {c.ours_s:.3g} s)",
        )
        for c in result.comparisons
    ]
    return lines + [(name, str(value)) for name, value in result.details.items()]
