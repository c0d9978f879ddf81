"""The speed benchmark: what an edit, an evaluation and a night cost, and how much slower the obvious form is.

Ratios are measured side by side: the slow form (`tasks/speed/plain_forms.py`) runs in the same process, on the same model,
over some of the same edits or probes, and seconds for each of them are compared.
"""

from __future__ import annotations

import logging
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from tasks.quality.requests import base_world
from tasks.serving.models import base_model, shown_name
from tasks.settings import Settings
from tasks.speed.case import BenchContext, Comparison, Meter, Once, Sizes
from tasks.speed.cases import CASE_BUILDERS
from tasks.workspace import warehouse
from warehouse.errors import UsageError
from warehouse.lineages.reports import save_benchmark
from warehouse.records import Record

log = logging.getLogger(__name__)

CASES = (
    "edit-ledger",
    "edit-r_rome",
    "edit-memit-100",
    "edit-grace",
    "sequence-malmen",
    "evaluate",
    "few-shot",
    "nightly-500",
    "night-scale",
    "ingest",
    "peak-memory",
)


class Spread(Record):
    """Of the repeats: the median, the smallest and the largest."""

    median: float
    low: float
    high: float


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
        case=name,
        editor=case.editor,
        model=shown_name(model),
        model_digest=model.base_digest,
        threads=torch.get_num_threads(),
        repeat=repeat,
        edits=last.edits,
        probes=last.probes,
        wall_s=_spread(r.meter.wall_s for r in runs),
        cpu_s=_spread(r.meter.cpu_s for r in runs),
        edits_per_s=_rates(runs, lambda r: (r.edits, r.edit_s)),
        probes_per_s=_rates(runs, lambda r: (r.probes, r.probe_s)),
        peak_rss_mb=_spread(r.meter.peak_mb for r in runs),
        model_mb=idle.peak_mb,
        forward_passes=last.meter.passes.forward,
        suffix_passes=last.meter.passes.suffix,
        backward_passes=last.meter.passes.backward,
        patch_bytes=last.patch_bytes,
        parts={part: _spread(r.parts[part] for r in runs) for part in last.parts},
        comparisons=comparisons,
        ratio=comparisons[0].ratio if comparisons else None,
        details=dict(last.details),
        environment={
            "torch": version("torch"),
            "transformers": version("transformers"),
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        created_at=datetime.now(UTC),
    )


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
        ("edits/s", result.edits_per_s, ""),
        ("probes/s", result.probes_per_s, ""),
        ("wall", result.wall_s, " s"),
        ("CPU", result.cpu_s, " s"),
        ("peak memory", result.peak_rss_mb, " MB"),
    ):
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
