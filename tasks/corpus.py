"""Texts that preparation learns from, and the subjects that therefore may never be probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from editors.base import Corpus
from warehouse.digests import digest_of
from warehouse.reference.prose import paragraph
from warehouse.reference.world import templates
from warehouse.store import Warehouse

#: Share of subjects whose facts stand in the second moment; the others are free for probes. A few thousand tokens a
#: layer are enough for the moment (arXiv:2506.04226: 0.3% of the usual sample), and the more subjects stay free the better.
CALIBRATION_SHARE = 0.3
#: Templates that calibration sentences use, and paragraphs of plain text beside them.
CALIBRATION_TEMPLATES = (0, 6)
NUM_PARAGRAPHS = 200


@dataclass(frozen=True)
class Calibration:
    """The corpus and the ids and labels of the subjects in it."""

    corpus: Corpus
    subjects: frozenset[str]


def is_calibration_subject(subject_id: str) -> bool:
    """A stable coin flip by id, so that a subject keeps its side over nights and releases."""
    return int(digest_of("calibration", subject_id)[:8], 16) / 16**8 < CALIBRATION_SHARE


def calibration(wh: Warehouse, never: Sequence[str] = ()) -> Calibration:
    """Sentences about the calibration subjects that the warehouse believed before the first night, and plain prose.

    Only facts of before the first night: the corpus, and so every preparation, stays the same over the nights.

    Args:
        never: subject ids to leave out, such as those of a benchmark's edits.
    """
    rows = wh.rows("SELECT subject_id, subject, relation, object FROM facts WHERE known_from_night = '' ORDER BY fact_id")
    barred = set(never)
    chosen = [r for r in rows if is_calibration_subject(r["subject_id"]) and r["subject_id"] not in barred]
    known = templates()
    texts = [
        f"{known[r['relation']].prompt(i, r['subject'])} {r['object']}."
        for r in chosen
        if r["relation"] in known
        for i in CALIBRATION_TEMPLATES
        if i < len(known[r["relation"]].prompts)
    ]
    # Seeds far from training's and from the held text's.
    texts += [paragraph(20_000_000 + i) for i in range(NUM_PARAGRAPHS)]
    return Calibration(Corpus(tuple(texts)), frozenset(r["subject_id"] for r in chosen))
