"""What a lineage can be asked: its log, what is in a checkpoint, how two differ, who gave the model an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from warehouse.database.connection import Warehouse
from warehouse.errors import NotFound
from warehouse.keys import entity_id, folded, relation_words
from warehouse.lineages.chain import CheckpointRow, ancestor_ids, checkpoints, head
from warehouse.lineages.reports import decision_of, reports_after
from warehouse.records import EditKind, Record
from warehouse.world.known_names import entities_named, relation_names, relations_of


class LogLine(Record):
    """One checkpoint of `errata log`. `marks`: what points at it; `off_chain`: rejected, held, or rolled back from."""

    checkpoint_id: str
    parent: str | None
    night: str
    verdict: str
    created_at: datetime
    editor: str
    edits: int
    in_force: int
    scores: dict[str, float | None]
    off_chain: bool
    marks: tuple[str, ...] = ()


class FactInForce(Record):
    """An edit that a checkpoint serves, with the request that asked for it."""

    edit_id: str
    request_id: str
    night: str
    checkpoint_id: str
    editor: str
    patch_digest: str
    kind: EditKind
    subject_id: str
    subject: str
    relation: str
    prompt: str
    target_new: str
    target_true: str | None


class ChangedFact(Record):
    """One slot that two checkpoints answer differently; None: the side has no edit of it."""

    subject: str
    relation: str
    before: str | None
    after: str | None


class CheckpointDifference(Record):
    """Facts by what became of them between two checkpoints, and the scores of both."""

    added: tuple[ChangedFact, ...]
    changed: tuple[ChangedFact, ...]
    retracted: tuple[ChangedFact, ...]
    scores_before: dict[str, float | None]
    scores_after: dict[str, float | None]


class Blame(Record):
    """Which update, night, request, edit and decision gave the model an answer; `in_force` False: it was given once."""

    fact: FactInForce
    in_force: bool
    status: str
    records: tuple[str, ...]
    revisions: tuple[str, ...]
    verdict: str
    sentence: str
    decision_id: str | None
    decided: str | None


#: Scores shown of a checkpoint: name -> (metric, slice).
SHOWN = {"SR": ("SR", ""), "SRR": ("SRR", ""), "locality": ("locality", "neighbourhood"), "DD": ("DD", "known")}

_FACT = """SELECT e.edit_id, e.request_id, e.night, e.checkpoint_id, e.editor, e.patch_digest, r.kind, r.subject_id, r.subject,
    r.relation, r.prompt, r.target_new, r.target_true, e.status, e.superseded_in, e.edit_seq
    FROM edits AS e JOIN edit_requests AS r USING (request_id)"""


def log_lines(wh: Warehouse, lineage: str) -> list[LogLine]:
    """All checkpoints of a lineage, newest first.

    Raises:
        NotFound: the lineage has none.
    """
    rows = checkpoints(wh, lineage)
    if not rows:
        raise NotFound(f"lineage {lineage!r} has no checkpoint yet; run `errata refresh`")
    newest = head(wh, lineage)
    chain = set(ancestor_ids(wh, lineage, newest.checkpoint_id)) if newest else set()
    counts = wh.rows(
        """SELECT checkpoint_id, any_value(editor) AS editor, count(*) AS edits FROM edits
           WHERE lineage = ? AND status <> 'skipped' GROUP BY checkpoint_id""",
        [lineage],
    )
    made = {row["checkpoint_id"]: row for row in counts}
    lines = []
    for row in reversed(rows):
        own = made.get(row.checkpoint.checkpoint_id, {"editor": "", "edits": 0})
        serving = newest is not None and row.checkpoint.checkpoint_id == newest.checkpoint_id
        lines.append(
            LogLine(
                checkpoint_id=row.checkpoint.checkpoint_id,
                parent=row.checkpoint.parent,
                night=row.night or "base",
                verdict=row.verdict,
                created_at=row.checkpoint.created_at,
                editor=own["editor"],
                edits=own["edits"],
                in_force=len(facts_in_force(wh, lineage, row.checkpoint.checkpoint_id)),
                scores=scores_of(wh, row),
                off_chain=row.checkpoint.checkpoint_id not in chain,
                marks=("production",) if serving else (),
            )
        )
    return lines


def scores_of(wh: Warehouse, row: CheckpointRow) -> dict[str, float | None]:
    """The shown scores of the report that a checkpoint was decided on; empty for the base."""
    found = reports_after(wh, row.checkpoint.checkpoint_id, before=row.checkpoint.parent)
    by_name = {(s.metric, s.slice): s.value for s in found[-1].scores} if found else {}
    return {name: by_name[key] for name, key in SHOWN.items() if key in by_name}


def facts_in_force(wh: Warehouse, lineage: str, checkpoint_id: str) -> list[FactInForce]:
    """Every edit that a checkpoint serves, in the order in which they were made; also for a rejected checkpoint."""
    chain = ancestor_ids(wh, lineage, checkpoint_id)
    rows = wh.rows(
        f"""{_FACT} WHERE e.lineage = $lineage AND e.status <> 'skipped' AND list_contains($chain, e.checkpoint_id)
            AND (e.superseded_in IS NULL OR NOT list_contains($chain, e.superseded_in)) ORDER BY e.edit_seq""",
        {"lineage": lineage, "chain": chain},
    )
    return [_fact(row) for row in rows]


def difference(wh: Warehouse, lineage: str, before: str, after: str) -> CheckpointDifference:
    """What changed from one checkpoint to another of the same lineage.

    Raises:
        NotFound: one of them is not in the lineage.
    """
    by_id = {row.checkpoint.checkpoint_id: row for row in checkpoints(wh, lineage)}
    missing = [name for name in (before, after) if name not in by_id]
    if missing:
        raise NotFound(f"lineage {lineage!r} has no checkpoint {missing[0]}")
    old, new = (_answers(facts_in_force(wh, lineage, name)) for name in (before, after))

    def facts(slots: Sequence[tuple[str, str, str]]) -> tuple[ChangedFact, ...]:
        return tuple(
            ChangedFact(subject=s, relation=r, before=old.get((i, s, r)), after=new.get((i, s, r))) for i, s, r in sorted(slots)
        )

    return CheckpointDifference(
        added=facts([slot for slot in new if slot not in old]),
        changed=facts([slot for slot in new if slot in old and old[slot] != new[slot]]),
        retracted=facts([slot for slot in old if slot not in new]),
        scores_before=scores_of(wh, by_id[before]),
        scores_after=scores_of(wh, by_id[after]),
    )


def _answers(facts: Sequence[FactInForce]) -> dict[tuple[str, str, str], str]:
    # Later edits of a slot replace earlier ones, should both stand.
    return {(f.subject_id, f.subject, f.relation): f.target_new for f in facts}


def blame(wh: Warehouse, lineage: str, subject: str, relation: str) -> list[Blame]:
    """Every edit that ever gave the lineage an answer for a slot, newest first.

    Args:
        subject: label or id, in any spelling.
        relation: property id in any spelling, or its label or an alias.

    Raises:
        NotFound: no edit of this slot was ever made here: what the model says of it, it says by itself.
    """
    names = relation_names(wh)
    asked, key = relations_of(relation, names) or frozenset({relation, relation_words(relation)}), folded(subject)
    ids = {entity_id(subject), *entities_named(wh, [subject]).get(key, ())}
    every = wh.rows(
        f"{_FACT} WHERE e.lineage = $lineage AND e.status <> 'skipped' ORDER BY e.edit_seq DESC", {"lineage": lineage}
    )
    rows = [
        row
        for row in every
        if (row["relation"] in asked or relations_of(row["relation"], names) & asked)
        and (folded(row["subject"]) == key or row["subject_id"] in ids)
    ]
    if not rows:
        raise NotFound(
            f"lineage {lineage!r} has no edit of {relation} of {subject!r}: the answer is the base model's own; "
            "`errata log` shows what was edited"
        )
    newest = head(wh, lineage)
    serving = {f.edit_id for f in facts_in_force(wh, lineage, newest.checkpoint_id)} if newest else set()
    return [_blamed(wh, lineage, row, row["edit_id"] in serving) for row in rows]


def _blamed(wh: Warehouse, lineage: str, row: dict[str, Any], in_force: bool) -> Blame:
    verdicts = wh.rows(
        """SELECT v.record_id, v.verdict, v.sentence, v.related, u.raw FROM verdicts AS v
           LEFT JOIN updates AS u USING (source, record_id) WHERE v.request_id = ? ORDER BY v.record_id""",
        [row["request_id"]],
    )
    related = {name for v in verdicts for name in v["related"]}
    checkpoint = next((c for c in checkpoints(wh, lineage) if c.checkpoint.checkpoint_id == row["checkpoint_id"]), None)
    reports = reports_after(wh, row["checkpoint_id"], before=checkpoint.checkpoint.parent) if checkpoint else []
    decision = decision_of(wh, reports[-1].report_id) if reports else None
    return Blame(
        fact=_fact(row),
        in_force=in_force,
        status=row["status"],
        records=tuple(dict.fromkeys([*(v["record_id"] for v in verdicts), *sorted(related)])),
        revisions=tuple(dict.fromkeys(filter(None, (_revision(v["raw"]) for v in verdicts)))),
        verdict=verdicts[0]["verdict"] if verdicts else "",
        sentence=verdicts[0]["sentence"] if verdicts else "",
        decision_id=decision.decision_id if decision else None,
        decided=decision.verdict if decision else None,
    )


def _revision(raw: str | None) -> str:
    """The source's revision that a raw record names, if it names one."""
    try:
        found = json.loads(raw or "{}")
    except ValueError:
        return ""
    revision = found.get("revision") if isinstance(found, dict) else None
    if isinstance(revision, dict):
        revision = revision.get("new")
    return str(revision) if isinstance(revision, (int, str)) else ""


def _fact(row: dict[str, Any]) -> FactInForce:
    return FactInForce(**{name: row[name] for name in FactInForce.model_fields})
