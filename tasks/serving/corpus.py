"""Texts and edits that preparation learns from, and the subjects that therefore may never be probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from editors.base import Corpus, TrainingEdit
from warehouse.database.connection import Reader, Warehouse
from warehouse.digests import digest_of
from warehouse.reference.prose import paragraph
from warehouse.reference.splits import is_calibration_subject
from warehouse.reference.world import Template
from warehouse.world.changes import Value
from warehouse.world.forms import PLAINLY, Asker
from warehouse.world.queries import base_facts
from warehouse.world.templates import templates_of
from warehouse.world.verbalise import state

#: Templates that calibration sentences use, and paragraphs of plain text beside them.
CALIBRATION_TEMPLATES = (0, 6)
NUM_PARAGRAPHS = 200
#: Facts of each relation that stand in the corpus as the model is asked for them, where it is not asked plainly.
ASKED_EACH = 4
#: One training edit in so many withdraws its fact; a night's share is of this order.
ERASURES_ONE_IN = 8
#: Other subjects' facts beside a training edit, of the same relation and of any.
KEPT = 3
#: The last corpus, by all that it is made of: it takes a second, and the nights of one process ask for the same.
_LAST: dict[str, Corpus] = {}


@dataclass(frozen=True)
class Calibration:
    """The corpus and the ids and labels of the subjects in it."""

    corpus: Corpus
    subjects: frozenset[str]


def calibration(wh: Warehouse, never: Sequence[str] = (), asker: Asker = PLAINLY) -> Calibration:
    """Sentences about the calibration subjects that the warehouse believed before the first night, and plain prose.

    Only facts of before the first night: the corpus, and so every preparation, stays the same over the nights.

    Args:
        never: subject ids to leave out, such as those of a benchmark's edits.
        asker: how the model is asked; training edits stand in its forms.
    """
    barred = set(never)
    chosen = [r for r in _learnt_from(wh) if r["subject_id"] not in barred]
    known = templates_of(wh)
    made_of = digest_of(
        [list(row.values()) for row in chosen],
        {relation: [t.prompts, t.phrase, t.inverse] for relation, t in known.items()},
        asker.forms,
        {relation: [w.phrase, w.statements, w.questions] for relation, w in asker.wordings.items()},
    )
    if made_of not in _LAST:
        corpus = _corpus(chosen, known, asker)
        _LAST.clear()
        _LAST[made_of] = corpus
    return Calibration(_LAST[made_of], frozenset(r["subject_id"] for r in chosen))


def calibration_subjects(wh: Reader) -> frozenset[str]:
    """Ids of the subjects that `calibration` learns from, without what it makes of them."""
    return frozenset(r["subject_id"] for r in _learnt_from(wh))


def _learnt_from(wh: Reader) -> list[dict[str, Any]]:
    return [row for row in base_facts(wh) if is_calibration_subject(row["subject_id"])]


def _corpus(chosen: Sequence[Mapping[str, Any]], known: Mapping[str, Template], asker: Asker) -> Corpus:
    texts = [
        f"{known[r['relation']].prompt(i, r['subject'])} {r['object']}."
        for r in chosen
        if r["relation"] in known
        for i in CALIBRATION_TEMPLATES
        if i < len(known[r["relation"]].prompts)
    ]
    texts += _asked(chosen, known, asker)
    # Seeds far from training's and from the held text's.
    texts += [paragraph(20_000_000 + i) for i in range(NUM_PARAGRAPHS)]
    return Corpus(tuple(texts), tuple(_training_edits(chosen, known, asker)))


def _asked(rows: Sequence[Mapping[str, Any]], known: Mapping[str, Template], asker: Asker) -> Iterator[str]:
    """A few facts of each relation in the forms that it is asked in.

    What stands around a question there, such as a chat's first words or the examples, is text that every edit meets.
    """
    if asker.is_plain:
        return
    told: dict[str, int] = {}
    for row in rows:
        relation = row["relation"]
        if relation in known and told.get(relation, 0) < ASKED_EACH:
            told[relation] = told.get(relation, 0) + 1
            plain = known[relation].prompt(0, row["subject"])
            yield from (f"{prompt} {row['object']}." for prompt in asker.ask(relation, row["subject"], plain))


def _training_edits(rows: Sequence[Mapping[str, Any]], known: Mapping[str, Template], asker: Asker) -> Iterator[TrainingEdit]:
    """One changed fact for each slot with a single value, some of them erasures, and what it must leave alone."""
    slots: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["relation"] in known:
            slots.setdefault((row["subject_id"], row["relation"]), []).append(row)
    single = [found[0] for found in slots.values() if len(found) == 1]
    objects: dict[str, list[str]] = {}
    by_subject: dict[str, list[Mapping[str, Any]]] = {}
    by_relation: dict[str, list[Mapping[str, Any]]] = {}
    for row in single:
        objects.setdefault(row["relation"], []).append(row["object"])
        by_subject.setdefault(row["subject_id"], []).append(row)
        by_relation.setdefault(row["relation"], []).append(row)
    objects = {relation: sorted(set(labels)) for relation, labels in objects.items()}
    for row in single:
        number = int(digest_of("training-edit", row["subject_id"], row["relation"])[:12], 16)
        others = [o for o in objects[row["relation"]] if o not in (row["object"], row["subject"])]
        erase = number % ERASURES_ONE_IN == 0 or not others
        target = None if erase else Value(type="item", label=others[number % len(others)])
        request = state(
            known[row["relation"]],
            record_id="training-edit",
            subject_id=row["subject_id"],
            subject=row["subject"],
            target=target,
            old=row["object"],
            kind="erase" if erase else "modify",
        )
        own = [r for r in by_subject[row["subject_id"]] if r is not row]
        near = [by_relation[row["relation"]][(number + 7 * i) % len(by_relation[row["relation"]])] for i in range(KEPT)]
        far = [single[(number + 101 * i) % len(single)] for i in range(KEPT)]
        away = [r for r in (*near, *far) if r["subject"] != row["subject"]]
        kept = [
            (
                asker.ask(r["relation"], r["subject"], known[r["relation"]].prompt((number + i) % 2, r["subject"]))[0],
                r["object"],
            )
            for i, r in enumerate([*own, *away])
        ]
        yield TrainingEdit(asker.state(request), tuple(dict.fromkeys(kept)))
