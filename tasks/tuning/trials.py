"""One trial of a search: edit the development facts with some numbers, and ask the edited model what it says then."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from checks.predictor import Question
from editors.base import Editor, Patch, Prepared
from editors.errors import EditRefused, InvalidRequest
from editors.model import EditableModel
from editors.preparation import prepared_for
from tasks.tuning.facts import TuningSet
from warehouse.digests import digest_of
from warehouse.records import EditRequest, Record

#: Most held-out wordings asked of one edit; of more, as many spread over them all.
REPHRASES = 8


class Trial(Record):
    """What some numbers gave.

    Attributes:
        choice: what was chosen, in the search space's own terms; `values`: the configuration's numbers.
        success, generalization, kept: shares of edited prompts, of held-out wordings, and of neighbours still answered rightly;
            each edit stands alone on the base. `asked`: how many of each.
        cpu_per_edit: seconds of all cores, without the preparation. `seconds`: wall time of the trial.
    """

    key: str
    choice: dict[str, Any]
    values: dict[str, Any]
    success: float
    generalization: float
    kept: float
    asked: tuple[int, int, int]
    refused: int
    cpu_per_edit: float
    seconds: float

    @property
    def score(self) -> float:
        """Harmonic mean of the three shares, as ROME's paper sums them up, to three digits."""
        parts = (self.success, self.generalization, self.kept)
        return round(len(parts) / sum(1 / p for p in parts), 3) if min(parts) > 0 else 0.0

    @property
    def is_perfect(self) -> bool:
        return self.score == 1.0


def trial_key(editor: Editor, model: EditableModel, tuning: TuningSet) -> str:
    """Equal keys mean equal trials: the same numbers on the same facts of the same model."""
    return digest_of("trial", editor.card.name, model.base_digest, editor.config.digest, tuning.digest)


def run_trial(
    editor: Editor,
    model: EditableModel,
    tuning: TuningSet,
    preparations: Path,
    *,
    choice: dict[str, Any],
    values: dict[str, Any],
    clock: Callable[[], float] = time.monotonic,
) -> Trial:
    """Make each edit alone on the bare base and ask its prompt, its held-out wordings and its neighbours."""
    assert not model.patches, "numbers are found on the base model"
    start = clock()
    prepared = prepared_for(editor, model, tuning.corpus, preparations)
    began = time.process_time()
    patches = _patches(editor, model, tuning.requests, prepared)
    cpu = time.process_time() - began
    right: tuple[list[bool], ...] = ([], [], [])
    try:
        for request, patch in zip(tuning.requests, patches, strict=True):
            if patch is not None:
                model.push(patch)
            questions = (
                [Question(p, request.target_new) for p in (request.prompt, *request.also)],
                [Question(p, request.target_new) for p in spread(request.rephrases, REPHRASES)],
                list(tuning.neighbours.get(request.request_id, ())),
            )
            answers = iter(model.score([q for group in questions for q in group]))
            for found, group in zip(right, questions, strict=True):
                found += [next(answers).exact for _ in group]
            model.rollback(0)
    finally:
        model.rollback(0)
    success, generalization, kept = (_share(found) for found in right)
    return Trial(
        key=trial_key(editor, model, tuning),
        choice=choice,
        values=values,
        success=success,
        generalization=generalization,
        kept=kept,
        asked=(len(right[0]), len(right[1]), len(right[2])),
        refused=patches.count(None),
        cpu_per_edit=round(cpu / len(tuning.requests), 2),
        seconds=round(clock() - start, 1),
    )


def spread(items: Sequence[str], most: int) -> list[str]:
    """At most so many of the items, evenly over all of them."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def keep_trial(path: Path, trial: Trial) -> None:
    """Append a trial to a file of them, a line each, and see that it lies on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = trial.model_dump_json() + "\n"
    with path.open("a+b") as file:
        # A kill may have cut the last line off in its middle.
        if file.tell() and not _ends_whole(path):
            line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def kept_trials(path: Path) -> dict[str, Trial]:
    """The trials of such a file by key; a line that a kill cut off counts as not measured."""
    found: dict[str, Trial] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            trial = Trial.model_validate(json.loads(line))
        except (ValueError, ValidationError):
            continue
        found[trial.key] = trial
    return found


def _ends_whole(path: Path) -> bool:
    return path.read_bytes().endswith(b"\n")


def _share(found: Sequence[bool]) -> float:
    # Nothing asked says nothing against the numbers.
    return round(sum(found) / len(found), 4) if found else 1.0


def _patches(editor: Editor, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[Patch | None]:
    """Independent patches; where a guard stops one, the others are made one by one."""
    try:
        return list(editor.edit_each(model, requests, prepared))
    except (EditRefused, InvalidRequest):
        pass
    patches: list[Patch | None] = []
    for request in requests:
        try:
            patches += editor.edit_each(model, [request], prepared)
        except (EditRefused, InvalidRequest):
            patches.append(None)
    return patches
