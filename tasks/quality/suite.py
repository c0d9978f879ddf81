"""The leaderboard's measurements: every editor in each of the survey's settings; a killed run goes on where it was."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from editors.base import Mode
from tasks.quality.benchmark import Progress, benchmark_one
from tasks.quality.questions import ask_base
from tasks.quality.requests import Task, base_world
from tasks.quality.rows import COMPARED, BenchmarkRow, load_rows, save_row
from tasks.serving.known import ask_known
from tasks.serving.models import base_model
from tasks.settings import Settings
from tasks.tuning.numbers import editors_with_numbers
from tasks.workspace import warehouse
from warehouse.errors import UsageError
from warehouse.records import Record

log = logging.getLogger(__name__)


class Cell(Record):
    """One setting of the leaderboard. `points`: of the curve, after so many edits of a sequence; its end is one anyway."""

    name: str
    mode: Mode
    edits: int
    batch_size: int = 0
    task: Task = "modification"
    points: tuple[int, ...] = ()


_ON_THE_WAY = tuple(number for number in COMPARED if number < 500)
#: In the order of their cost, so that a run that is stopped has measured the most. A sequence of 100 is the first point of
#: that of 500: its requests are the first of the same choice.
SURVEY = (
    Cell(name="single-200", mode="single", edits=200),
    Cell(name="batch-100", mode="batch", edits=100),
    Cell(name="insertion-50", mode="single", edits=50, task="insertion"),
    Cell(name="erasure-50", mode="single", edits=50, task="erasure"),
    Cell(name="batches-10x50", mode="sequential-batch", edits=500, batch_size=50, points=_ON_THE_WAY),
    Cell(name="sequential-500", mode="sequential", edits=500, points=_ON_THE_WAY),
)

#: Batches of other sizes, for the survey's Figure 2 and the editors in it.
SCALING = (
    Cell(name="batches-of-10", mode="batch", edits=100, batch_size=10),
    Cell(name="batch-500", mode="batch", edits=500),
    Cell(name="batch-1000", mode="batch", edits=1000),
)

#: What a pretrained model is measured in, where an edit costs seconds: single edits, and nights of fifty that pile up.
REAL = (
    Cell(name="single-100", mode="single", edits=100),
    Cell(name="nights-6x50", mode="sequential-batch", edits=300, batch_size=50, points=(50,)),
)
GROUPS = {"survey": SURVEY, "scaling": SCALING, "real": REAL}


def cells_named(names: Sequence[str]) -> list[Cell]:
    """The cells of those names; `survey` and `scaling` stand for all of theirs.

    Raises:
        UsageError: an unknown name.
    """
    known = {cell.name: (cell,) for cells in GROUPS.values() for cell in cells} | GROUPS
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"no suite or setting {', '.join(unknown)}; known are {', '.join(known)}")
    return [cell for name in names for cell in known[name]]


def run_suite(
    settings: Settings,
    editors: Sequence[str],
    cells: Sequence[Cell],
    *,
    known: Sequence[BenchmarkRow] = (),
    command: str = "",
    progress: Progress | None = None,
) -> list[BenchmarkRow]:
    """Measure what the warehouse does not hold yet; each row is stored as soon as it is measured.

    Args:
        known: rows measured elsewhere, such as those of the repository; they are not measured again either.

    Returns:
        The rows that were measured now.
    """
    model = base_model(settings)
    chosen = editors_with_numbers(settings, model, {name: {} for name in editors})
    with warehouse(settings) as wh:
        done = {_key(row) for row in [*known, *load_rows(wh)]}
    asker = ask_known(settings, progress=lambda done, of: progress and progress("known facts", done, of))
    measured = []
    for cell in cells:
        missing = [e for e in chosen if _place(cell, e.card.name, model.base_digest, e.config.digest) not in done]
        if not missing:
            continue
        with base_world(settings) as world:
            questions = ask_base(world, model, cell.task, cell.edits, split="report", seed=0, asker=asker)
        for editor in missing:
            log.info("%s: %s", cell.name, editor.card.name)
            row = benchmark_one(
                editor,
                model,
                questions,
                cell.mode,
                cell.batch_size,
                settings,
                task=cell.task,
                split="report",
                checkpoints=cell.points,
                command=command,
                progress=progress,
            )
            with warehouse(settings) as wh:
                save_row(wh, row)
            measured.append(row)
    return measured


def _place(cell: Cell, editor: str, model_digest: str, config_digest: str) -> tuple[object, ...]:
    batch = cell.batch_size or (cell.edits if cell.mode in ("batch", "sequential-batch") else 1)
    return (editor, cell.mode, cell.task, cell.edits, batch, "report", 0, model_digest, config_digest)


def _key(row: BenchmarkRow) -> tuple[object, ...]:
    return (row.editor, row.mode, row.task, row.edits, row.batch_size, row.split, row.seed, row.model_digest, row.config_digest)
