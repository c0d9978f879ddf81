"""Find numbers for editors on the model at hand within a budget, and write them into the home as presets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from editors.base import Editor
from editors.errors import NoPreset
from editors.model import EditableModel
from editors.presets import load_editor, model_key, space_of
from editors.presets.learnt import write_learnt
from editors.presets.scales import Scales, measure_scales
from tasks.errors import NotEnoughFacts
from tasks.serving.corpus import calibration
from tasks.serving.models import shown_name
from tasks.settings import Settings
from tasks.tuning.facts import TuningSet, tuning_set
from tasks.tuning.search import Search, hosts_of
from tasks.tuning.trials import Trial
from tasks.workspace import warehouse
from warehouse.errors import UsageError
from warehouse.records import EditRequest

log = logging.getLogger(__name__)

#: Wall time of all editors of a call together.
MINUTES = 30.0
#: Prompts that the scales are measured over.
SCALE_PROMPTS = 40


@dataclass(frozen=True)
class FoundNumbers:
    """Attributes:
    how: `searched`: the best of `trials`; `scaled`: scale-free defaults, tried by nobody, for the reason in `why`.
    is_complete: the search ended by itself and not by its budget.
    """

    name: str
    how: Literal["searched", "scaled"]
    path: Path
    values: Mapping[str, Any]
    best: Trial | None
    trials: tuple[Trial, ...]
    is_complete: bool
    why: str = ""

    @property
    def as_record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        trials = [t.model_dump(mode="json", exclude={"key"}) | {"score": t.score} for t in self.trials]
        best = self.trials.index(self.best) if self.best is not None else None
        return vars(self) | {"path": str(self.path), "values": dict(self.values), "trials": trials, "best": best}


def find_numbers(
    settings: Settings,
    model: EditableModel,
    names: Iterable[str],
    *,
    minutes: float = MINUTES,
    held: Mapping[str, Mapping[str, Any]] | None = None,
    tuning: TuningSet | None = None,
    report: Callable[[str], None] = log.info,
    clock: Callable[[], float] = time.monotonic,
) -> list[FoundNumbers]:
    """Search each editor's numbers by turns, a trial each, so that a short budget serves all of them; then write presets.

    Trials are kept as they are measured: after a kill, or with a larger budget, the same call goes on. An editor that
    wraps another takes what was found for that one.

    Args:
        minutes: no trial is begun that would not end within them, going by the longest of its editor so far.
        held: editor -> numbers that are set; they are left alone and become part of the preset.
        tuning: by default development facts that the model knows.
        report: told one line for each trial and each preset.

    Raises:
        UnknownEditor: no such editor.
        UnsupportedModel: an editor without a section `auto`, or one that the architecture does not take; nothing is tried then.
        UsageError: a negative budget.
    """
    if minutes < 0:
        raise UsageError(f"a budget of {minutes} minutes: give 0 (no trial) or more")
    start = clock()
    fixed = held or {}
    ordered = list(dict.fromkeys(n for name in names for n in (*hosts_of(name, fixed.get(name, {})), name)))
    why = ""
    if tuning is None:
        try:
            tuning = tuning_set(settings, model)
        except NotEnoughFacts as error:
            why = str(error)
    scales = _scales(settings, model, tuning)
    searches = [Search(settings, model, n, scales, tuning, fixed.get(n, {}), clock) for n in ordered]
    going = [s for s in searches if s.next is not None]
    while going:
        for search in list(going):
            left = 60 * minutes - (clock() - start)
            if search.next is None or left <= search.longest:
                going.remove(search)
                continue
            trial = search.try_next()
            report(f"{search.name} {len(search.trials)} of at most {search.most}: {_line(trial)}")
    return [_write(settings, model, search, minutes, clock() - start, why, report) for search in searches]


def editor_with_numbers(
    settings: Settings, model: EditableModel, name: str, overrides: Mapping[str, Any] | None = None
) -> Editor:
    """`editors_with_numbers` of one editor."""
    return editors_with_numbers(settings, model, {name: overrides or {}})[0]


def editors_with_numbers(settings: Settings, model: EditableModel, wanted: Mapping[str, Mapping[str, Any]]) -> list[Editor]:
    """Editors with their presets for this model; where some have none, their numbers are found first, which is said.

    Args:
        wanted: name -> numbers over the preset.

    Raises:
        NoPreset: one has none, and nothing says what to search.
    """

    def load(name: str) -> Editor:
        editor = load_editor(name, model, {"seed": settings.seed, **wanted[name]}, settings.presets)
        _check_hosts(model, editor, name)
        return editor

    missing: list[str] = []
    for name in wanted:
        try:
            load(name)
        except NoPreset:
            if space_of(name) is None:
                raise
            missing.append(name)
    if missing:
        names, minutes = " ".join(missing), MINUTES * len(missing)
        log.warning(
            "no numbers for %s on %s: finding them on development facts, at most %.0f minutes; "
            "`errata prepare --auto %s` does this beforehand",
            ", ".join(missing),
            model_key(model),
            minutes,
            names,
        )
        find_numbers(settings, model, missing, minutes=minutes, held=wanted)
    return [load(name) for name in wanted]


def _check_hosts(model: EditableModel, editor: Editor, name: str) -> None:
    """Raise NoPreset where the editor wraps one that has no numbers for the model."""
    space, config = space_of(name), editor.config.model_dump()
    for field, names_host in space.hosts.items() if space is not None else ():
        load_editor(config[names_host], model, config[field])


def _scales(settings: Settings, model: EditableModel, tuning: TuningSet | None) -> Scales:
    """The scales at the subjects of the development facts, or of training edits where there are too few of those."""
    requests: tuple[EditRequest, ...]
    if tuning is not None:
        requests = tuning.requests
    else:
        with warehouse(settings) as wh:
            requests = tuple(edit.request for edit in calibration(wh).corpus.edits[:SCALE_PROMPTS])
    pairs = [(p, r.subject) for r in requests for p in (r.prompt, *r.wordings)]
    step = -(-len(pairs) // SCALE_PROMPTS)
    prompts, subjects = zip(*pairs[::step], strict=True)
    return measure_scales(model, prompts, subjects)


def _line(trial: Trial) -> str:
    chosen = ", ".join(f"{field} {value}" for field, value in trial.choice.items())
    return (
        f"{chosen}: SR {trial.success:.2f}, GR {trial.generalization:.2f} ({trial.asked[1]}), "
        f"neighbours {trial.kept:.2f} ({trial.asked[2]}), {trial.cpu_per_edit:.1f} CPU s/edit, {trial.seconds:.0f} s"
    )


def _write(
    settings: Settings,
    model: EditableModel,
    search: Search,
    minutes: float,
    seconds: float,
    why: str,
    report: Callable[[str], None],
) -> FoundNumbers:
    trials, best = search.trials, search.best
    if best is None and not why:
        why = (
            f"no trial within {minutes:g} minutes"
            if search.space.is_searched
            else "its preparation is long, or nothing to choose"
        )
    values = search.values
    found = {
        "how": "scaled" if best is None else "searched",
        **({"why": why} if best is None else {}),
        "model": shown_name(model),
        "model_key": model_key(model),
        "facts": None if search.tuning is None else {"digest": search.tuning.digest, "edits": len(search.tuning.requests)},
        "seed": settings.seed,
        "found_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "errata": version("errata"),
        "budget_minutes": minutes,
        "seconds": round(seconds, 1),
        "is_complete": search.next is None,
        "trials": [t.model_dump(mode="json", exclude={"key"}) | {"score": t.score} for t in trials],
    }
    write_learnt(search.path, values, found)
    result = FoundNumbers(
        name=search.name,
        how="scaled" if best is None else "searched",
        path=search.path,
        values=values,
        best=best,
        trials=tuple(trials),
        is_complete=search.next is None,
        why=why if best is None else "",
    )
    report(f"{search.name}: {_line(best) if best else f'scaled defaults ({why})'} -> {search.path}")
    return result
