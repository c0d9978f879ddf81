"""KnowEdit-shaped tasks made from the warehouse's facts: modification, insertion and erasure requests.

Everything is chosen by hash order under a seed, so one base model, world and seed give the same requests in every
process. Subjects are split for good into development and report; subjects of the second moment are in neither, because
an edit must not be part of what its own editor learnt from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from checks.predictor import Predictor, Question
from tasks.errors import NotEnoughFacts
from tasks.settings import Settings
from tasks.workspace import warehouse
from warehouse.database.connection import Warehouse
from warehouse.digests import digest_of
from warehouse.errors import UsageError
from warehouse.records import EditKind, EditRequest
from warehouse.reference.splits import half_of, is_calibration_subject
from warehouse.reference.world import UNKNOWN, Template
from warehouse.world.benchmark_slots import copy_of_base_world, empty_slots, filled_slots, objects_by_relation
from warehouse.world.changes import Value
from warehouse.world.facts import with_other_relations
from warehouse.world.forms import PLAINLY, Asker
from warehouse.world.templates import templates_of
from warehouse.world.verbalise import state

Task = Literal["modification", "insertion", "erasure"]
TASKS: tuple[Task, ...] = ("modification", "insertion", "erasure")
#: `all` is for speed, where no quality is read and no subject can be overfitted. `report-first` is for long streams: all of
#: the report split, and only then development's, so that every point up to the report split's size is on unseen facts.
Split = Literal["development", "report", "report-first", "all"]

_KINDS: dict[Task, EditKind] = {"modification": "modify", "insertion": "insert", "erasure": "erase"}
#: Candidates looked at together, for each request that is still missing.
_LOOK_AHEAD = 3
#: Empty slots looked at, at most, for each request.
_MOST_EMPTY = 12


@contextmanager
def base_world(settings: Settings) -> Iterator[Warehouse]:
    """The world as it was before the first night, in memory: requests stay the same whatever the nights brought.

    The warehouse itself is open only for the copy, so that a long benchmark shuts nobody out.
    """
    with warehouse(settings) as source:
        world = copy_of_base_world(source)
    with world:
        yield world


def benchmark_requests(
    world: Warehouse,
    predictor: Predictor,
    task: Task,
    count: int,
    *,
    split: Split = "report",
    seed: int = 0,
    asker: Asker = PLAINLY,
) -> list[EditRequest]:
    """`count` requests about as many different subjects.

    - `modification`: a fact that the predictor answers rightly, to another object that the relation has in the world.
    - `insertion`: a slot that the world has no value for, of a relation that subjects of that kind have; those that
      the predictor answers with `unknown` come first.
    - `erasure`: a fact that the predictor answers rightly, towards `unknown`.

    Args:
        asker: how the predictor is asked; requests stand in its forms.

    Raises:
        NotEnoughFacts: fewer candidates than `count`.
        UsageError: `count` is not positive.
    """
    if count < 1:
        raise UsageError(f"a benchmark needs at least 1 edit, not {count}")
    chooser = _Chooser(templates_of(world), _objects(world), task, seed, asker)
    rows = (empty_slots if task == "insertion" else filled_slots)(world, f"{task}-{seed}")
    candidates = [
        row
        for row in rows
        if not is_calibration_subject(row["subject_id"]) and split in ("all", "report-first", half_of(row["subject_id"]))
    ]
    if split == "report-first":
        candidates.sort(key=lambda row: half_of(row["subject_id"]) != "report")  # stable: else in hash order
    found = (_unknown_first if task == "insertion" else _known)(chooser, candidates, predictor, count)
    if len(found) < count:
        raise NotEnoughFacts(
            f"task {task}, split {split}: {count} edits asked, but only {len(found)} subjects qualify "
            f"(of {len(candidates)} slots); ask for fewer (--edits), or see with `errata world known` what the model knows: a "
            "relation of your own joins by `templates` and facts of a night"
        )
    return with_other_relations(world, found[:count])


@dataclass(frozen=True)
class _Chooser:
    templates: Mapping[str, Template]
    objects: Mapping[str, Sequence[Value]]
    task: Task
    seed: int
    asker: Asker

    def request(self, row: Mapping[str, Any]) -> EditRequest | None:
        """The request for a slot; None where the relation has no other object."""
        target = None if self.task == "erasure" else self._target(row)
        if target is None and self.task != "erasure":
            return None
        stated = state(
            self.templates[row["relation"]],
            record_id=f"benchmark-{self.task}-{self.seed}",
            subject_id=row["subject_id"],
            subject=row["subject"],
            target=target,
            old=row["object"] or None,
            kind=_KINDS[self.task],
        )
        return self.asker.state(stated.model_copy(update={"source": f"benchmark:{self.task}"}))

    def _target(self, row: Mapping[str, Any]) -> Value | None:
        known = self.objects.get(row["relation"], ())
        start = int(digest_of(self.seed, row["subject_id"], row["relation"])[:8], 16)
        turned = (known[(start + i) % len(known)] for i in range(len(known)))
        return next((v for v in turned if v.label not in (row["object"], row["subject"])), None)


def _known(chooser: _Chooser, rows: Sequence[dict[str, Any]], predictor: Predictor, count: int) -> list[EditRequest]:
    """Requests about facts that the predictor knows; scored piece by piece until there are enough."""
    found: dict[str, EditRequest] = {}
    at = 0
    while at < len(rows) and len(found) < count:
        piece = rows[at : at + _LOOK_AHEAD * (count - len(found))]
        at += len(piece)
        pairs = [(row, made) for row in piece if (made := chooser.request(row)) is not None]
        answers = predictor.score([Question(made.prompt, row["object"]) for row, made in pairs])
        for (row, made), answer in zip(pairs, answers, strict=True):
            if answer.exact:
                found.setdefault(row["subject_id"], made)
    return list(found.values())


def _unknown_first(chooser: _Chooser, rows: Sequence[dict[str, Any]], predictor: Predictor, count: int) -> list[EditRequest]:
    """Requests about empty slots, one a subject; what the predictor guesses already would be no edit."""
    found: dict[str, EditRequest] = {}
    guessed_wrong: dict[str, EditRequest] = {}
    # A bound: most empty slots get a made-up answer, and looking at them all takes minutes.
    for at in range(0, min(len(rows), _MOST_EMPTY * count), _LOOK_AHEAD * count):
        made = [chooser.request(row) for row in rows[at : at + _LOOK_AHEAD * count]]
        requests = [request for request in made if request is not None]
        asked = [Question(r.prompt, UNKNOWN) for r in requests] + [Question(r.prompt, r.target_new) for r in requests]
        answers = predictor.score(asked)
        for request, unknown, guess in zip(requests, answers, answers[len(requests) :], strict=False):
            if not guess.exact:
                (found if unknown.exact else guessed_wrong).setdefault(request.subject_id, request)
        if len(found) >= count:
            break
    return [*found.values(), *(r for subject, r in guessed_wrong.items() if subject not in found)]


def _objects(world: Warehouse) -> dict[str, list[Value]]:
    """Objects of each relation, each label once, in an order that depends on the labels alone."""
    found: dict[str, list[Value]] = {}
    for row in objects_by_relation(world):
        found.setdefault(row["relation"], []).append(Value(type="item", id=row["object_id"], label=row["object"]))
    return found
