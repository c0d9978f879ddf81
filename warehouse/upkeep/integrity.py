"""Does the warehouse hold together: references, digests, duplicates and orphans, each finding with what to do.

DuckDB enforces primary keys, types and NOT NULL; everything else that must be true between rows is checked here.
An error means that a stored statement cannot be trusted; a warning that something lies about unused. While a night is
under way (or after one that broke off) references of that night may still be open: run it to its end, then check.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from warehouse.database.connection import Warehouse
from warehouse.digests import digest_of
from warehouse.lineages.audit import check_chain, entries
from warehouse.nights.intake import request_digest
from warehouse.nights.quarantine import audit_problems
from warehouse.nights.runs import UNFINISHED
from warehouse.records import EditRequest, GatePolicy, Probe, Record
from warehouse.world.facts import fact_id
from warehouse.world.probes import probe_set_digest


class Finding(Record):
    """One thing wrong: `key` is the row's primary key as text."""

    check: Literal["reference", "digest", "duplicate", "orphan", "state"]
    severity: Literal["error", "warning"]
    table: str
    key: str
    found: str
    advice: str


@dataclass(frozen=True)
class _Rule:
    """`sql` gives one row (key, found) for each thing wrong."""

    check: Literal["reference", "duplicate", "orphan", "state"]
    table: str
    sql: str
    advice: str
    severity: Literal["error", "warning"] = "error"


def _reference(
    table: str,
    key: str,
    value: str,
    parent: str,
    advice: str,
    *,
    matches: str,
    where: str = "true",
    severity: Literal["error", "warning"] = "error",
) -> _Rule:
    """Rows `c` of a table for which no row `p` of the parent matches; `value` is what they name."""
    sql = f"""SELECT {key} AS key, concat('names {parent} ', {value}, ', which is not stored') AS found
              FROM {table} AS c WHERE ({where}) AND NOT EXISTS (SELECT 1 FROM {parent} AS p WHERE {matches})"""
    return _Rule("reference", table, sql, advice, severity)


def _pair(first: str, second: str) -> str:
    return f"concat(c.{first}, ' / ', c.{second})"


_RERUN = "run that night of that lineage to its end; if it is finished, restore the row from its manifest"
_ON_LINEAGE = "p.lineage = c.lineage AND p.checkpoint_id = c."
_DECIDED = "c.report_id IN (SELECT report_id FROM decisions)"

_REFERENCES = (
    _reference("verdicts", _pair("source", "record_id"), "c.record_id", "updates",
               "receive the night again from its source", matches="p.source = c.source AND p.record_id = c.record_id"),
    _reference("verdicts", _pair("source", "record_id"), "c.request_id", "edit_requests",
               "validate the night again in a new warehouse; this verdict has lost its request",
               matches="p.request_id = c.request_id", where="c.request_id IS NOT NULL"),
    _Rule("reference", "batches",
          """SELECT concat(b.lineage, ' / ', b.batch_id) AS key,
                    concat('names edit_requests ', b.request_id, ', which is not stored') AS found
             FROM (SELECT lineage, batch_id, unnest(request_ids) AS request_id FROM batches) AS b
             ANTI JOIN edit_requests USING (request_id)""", _RERUN),
    _reference("edits", _pair("lineage", "edit_id"), "c.request_id", "edit_requests", _RERUN,
               matches="p.request_id = c.request_id"),
    _reference("edits", _pair("lineage", "edit_id"), "c.batch_id", "batches", _RERUN,
               matches="p.lineage = c.lineage AND p.batch_id = c.batch_id"),
    _reference("edits", _pair("lineage", "edit_id"), "c.patch_digest", "patches",
               "read the patch's patch.json in the artifact store and save its row again",
               matches="p.patch_digest = c.patch_digest", where="c.status <> 'skipped'"),
    _reference("edits", _pair("lineage", "edit_id"), "c.checkpoint_id", "checkpoints", _RERUN,
               matches=_ON_LINEAGE + "checkpoint_id", where="c.checkpoint_id IS NOT NULL"),
    _reference("edits", _pair("lineage", "edit_id"), "c.superseded_in", "checkpoints", _RERUN,
               matches=_ON_LINEAGE + "superseded_in",
               where="c.superseded_in IS NOT NULL"),
    _reference("checkpoints", _pair("lineage", "checkpoint_id"), "c.parent", "checkpoints",
               "add the parent again from its manifest in the checkpoint store", matches=_ON_LINEAGE + "parent",
               where="c.parent IS NOT NULL"),
    _Rule("reference", "checkpoints",
          """SELECT concat(c.lineage, ' / ', c.checkpoint_id) AS key,
                    concat('names patches ', c.patch_digest, ', which is not stored') AS found
             FROM (SELECT lineage, checkpoint_id, unnest(patch_digests) AS patch_digest FROM checkpoints) AS c
             ANTI JOIN patches USING (patch_digest)""",
          "read the patch's patch.json in the artifact store and save its row again"),
    _reference("heads", "concat(c.lineage, ' / ', c.seq)", "c.checkpoint_id", "checkpoints",
               "move the head to a promoted checkpoint of that lineage",
               matches=_ON_LINEAGE + "checkpoint_id AND p.verdict = 'promote'"),
    _reference("runs", _pair("night", "lineage"), "c.checkpoint_id", "checkpoints", _RERUN,
               matches=_ON_LINEAGE + "checkpoint_id", where="c.checkpoint_id IS NOT NULL"),
    _reference("probes", _pair("set_digest", "probe_id"), "c.set_digest", "probe_sets",
               "delete these probes, or build the set again from its requests", matches="p.digest = c.set_digest"),
    # Sets of a benchmark ask about requests that no night brought; what a decision rests on must be there.
    _reference("probes", _pair("set_digest", "probe_id"), "c.request_id", "edit_requests",
               "a decision rests on this set: evaluate the night again",
               matches="p.request_id = c.request_id",
               where="c.request_id IS NOT NULL AND c.set_digest IN "
               "(SELECT probe_set_digest FROM reports JOIN decisions USING (report_id))"),
    _reference("serving_checks", "concat(c.lineage, ' / ', c.seq)", "c.checkpoint_id", "checkpoints",
               "delete the check: what the server should have served is not stored",
               matches=_ON_LINEAGE + "checkpoint_id"),
    _reference("stream_outcomes", "c.event_key", "c.event_key", "stream_events",
               "delete the outcome: its event is not stored, so it comes again or is lost",
               matches="p.event_key = c.event_key"),
    _reference("quarantine_actions", _pair("source", "record_id"), "c.record_id", "updates",
               "restore the record from its source: somebody acted on it",
               matches="p.source = c.source AND p.record_id = c.record_id", where="NOT starts_with(c.source, 'edits:')"),
    _reference("quarantine_actions", _pair("source", "record_id"), "c.record_id", "held_edits",
               "restore the warehouse from a copy: somebody acted on an edit whose evidence is gone",
               matches="concat('edits:', p.lineage) = c.source AND p.edit_id = c.record_id",
               where="starts_with(c.source, 'edits:')"),
    _reference("held_edits", _pair("lineage", "edit_id"), "c.edit_id", "edits", _RERUN,
               matches="p.lineage = c.lineage AND p.edit_id = c.edit_id"),
    _reference("reports", "c.report_id", "c.probe_set_digest", "probe_sets",
               "build the probe set again from its requests and save it: its digest must come out the same",
               matches="p.digest = c.probe_set_digest"),
    _reference("reports", "c.report_id", "c.after", "checkpoints", _RERUN, matches="p.checkpoint_id = c.after",
               where=_DECIDED),
    _reference("reports", "c.report_id", "c.before", "checkpoints", _RERUN, matches="p.checkpoint_id = c.before",
               where=_DECIDED),
    _reference("scores", "concat(c.report_id, ' / ', c.metric, ' / ', c.slice)", "c.report_id", "reports",
               "delete these scores: nothing says what was measured", matches="p.report_id = c.report_id"),
    _reference("decisions", "c.decision_id", "c.report_id", "reports",
               "evaluate and decide that night again: a decision without its report proves nothing",
               matches="p.report_id = c.report_id"),
    _reference("decisions", "c.decision_id", "c.policy_digest", "policies",
               "save the policy file of that digest again (warehouse.lineages.reports.save_policy)",
               matches="p.policy_digest = c.policy_digest"),
    _reference("facts", "c.fact_id", "c.relation", "properties",
               "add the property to properties.csv, or the conflict rules treat it as unknown",
               matches="p.pid = c.relation", severity="warning"),
)  # fmt: skip

_OTHERS = (
    _Rule("duplicate", "facts",
          """SELECT a.fact_id AS key,
                    concat(a.subject, ' ', a.relation, ' ', a.object, ' is believed as well by ', b.fact_id) AS found
             FROM facts AS a JOIN facts AS b
               ON a.relation = b.relation AND a.fact_id < b.fact_id
              AND coalesce(nullif(a.subject_id, ''), lower(trim(a.subject)))
                  = coalesce(nullif(b.subject_id, ''), lower(trim(b.subject)))
              AND coalesce(nullif(a.object_id, ''), lower(trim(a.object)))
                  = coalesce(nullif(b.object_id, ''), lower(trim(b.object)))
              AND (a.known_to_night IS NULL OR place_of(b.known_from_night) < place_of(a.known_to_night))
              AND (b.known_to_night IS NULL OR place_of(a.known_from_night) < place_of(b.known_to_night))""",
          "end one of the two (apply_fact_changes): counts and probes would see this fact twice"),
    _Rule("duplicate", "edits",
          """SELECT concat(lineage, ' / ', min(edit_id)) AS key,
                    concat('request ', request_id, ' is active in ', count(*), ' edits of one checkpoint') AS found
             FROM edits WHERE status = 'active' AND checkpoint_id IS NOT NULL
             GROUP BY lineage, checkpoint_id, request_id HAVING count(*) > 1""",
          "keep the edit whose patch the checkpoint lists last and mark the others superseded"),
    _Rule("orphan", "probe_sets",
          # The set of no probes is one: after everything was reverted, nothing is left to retain.
          f"""SELECT digest AS key, 'has no probes' AS found FROM probe_sets
              WHERE digest NOT IN (SELECT set_digest FROM probes) AND digest <> '{probe_set_digest(())}'""",
          "delete the row, or build the set again", "warning"),
    _Rule("orphan", "patches",
          """SELECT patch_digest AS key, 'belongs to no edit and no checkpoint' AS found FROM patches
             WHERE patch_digest NOT IN (SELECT patch_digest FROM edits)
               AND patch_digest NOT IN (SELECT unnest(patch_digests) FROM checkpoints)""",
          "delete the row; its files in the artifact store are unused too", "warning"),
    _Rule("orphan", "edit_requests",
          """SELECT request_id AS key, 'came of no stored verdict' AS found FROM edit_requests
             WHERE request_id NOT IN (SELECT request_id FROM verdicts WHERE request_id IS NOT NULL)""",
          "validate its night again, or delete the row", "warning"),
    _Rule("orphan", "policies",
          """SELECT policy_digest AS key, concat(name, ' v', version, ' decided nothing') AS found FROM policies
             WHERE policy_digest NOT IN (SELECT policy_digest FROM decisions)""",
          "delete the row if that policy is not in use", "warning"),
    _Rule("orphan", "reports",
          """SELECT report_id AS key, 'has no scores' AS found FROM reports
             WHERE report_id NOT IN (SELECT report_id FROM scores)""",
          "evaluate again: a report that measured nothing supports nothing", "warning"),
    _Rule("state", "facts",
          """SELECT fact_id AS key, concat('believed from night ', known_from_night, ' to ', known_to_night) AS found
             FROM facts WHERE place_of(known_to_night) <= place_of(known_from_night)""",
          "restore the two nights from the update records: a fact ends after it began"),
    _Rule("state", "runs",
          f"""SELECT concat(night, ' / ', lineage) AS key,
                    concat('is published, with verdict ', verdict, ', end ', coalesce(finished_at::TEXT, 'none')) found
             FROM runs WHERE state = 'published' AND (finished_at IS NULL OR verdict = '{UNFINISHED}')""",
          "run the night again: it goes on from what is done and writes its line"),
    _Rule("state", "checkpoints",
          """SELECT concat(c.lineage, ' / ', c.checkpoint_id) AS key, 'was promoted but never was a head' AS found
             FROM checkpoints AS c ANTI JOIN heads USING (lineage, checkpoint_id) WHERE c.verdict = 'promote'""",
          "run its night again, or move the head if it is the newest"),
)  # fmt: skip


# ---------------------------------------------------------------- digests


def _wrong_facts(wh: Warehouse) -> Iterator[tuple[str, str, str]]:
    for row in wh.rows("SELECT * FROM facts ORDER BY fact_id"):
        if (digest := fact_id(row)) != row["fact_id"]:
            yield row["fact_id"], f"its columns have the digest {digest}", "restore the fact from its source and night"


def _wrong_requests(wh: Warehouse) -> Iterator[tuple[str, str, str]]:
    advice = "validate its night again in a new warehouse and compare the requests"
    for row in wh.rows("SELECT * FROM edit_requests ORDER BY request_id"):
        try:
            digest = request_digest(EditRequest(**{name: row[name] for name in EditRequest.model_fields}))
        except ValidationError as error:
            yield row["request_id"], _unreadable(error), advice
            continue
        if digest != row["content_digest"]:
            found = f"its content has the digest {digest}, stored is {row['content_digest']}"
            yield row["request_id"], found, advice


def _wrong_probes(wh: Warehouse) -> Iterator[tuple[str, str, str]]:
    for row in wh.rows("SELECT DISTINCT probe_id, kind, prompt, targets FROM probes ORDER BY probe_id"):
        # By digest alone: a kind that no record allows is found as well.
        if (digest := digest_of(row["kind"], row["prompt"], row["targets"])) != row["probe_id"]:
            found = f"kind, prompt and targets have the digest {digest}"
            yield row["probe_id"], found, "build the sets that hold it again; predictions on it are of no use"


def _wrong_probe_sets(wh: Warehouse) -> Iterator[tuple[str, str, str]]:
    columns = ", ".join(Probe.model_fields)
    advice = "build the set again; decisions made on it must be made again"
    for row in wh.rows("SELECT digest FROM probe_sets SEMI JOIN probes ON set_digest = digest ORDER BY digest"):
        try:
            probes = wh.records(Probe, f"SELECT {columns} FROM probes WHERE set_digest = ?", [row["digest"]])
        except ValidationError as error:
            yield row["digest"], _unreadable(error), advice
            continue
        if (digest := probe_set_digest(probes)) != row["digest"]:
            yield row["digest"], f"its {len(probes)} probes have the digest {digest}", advice


def _wrong_policies(wh: Warehouse) -> Iterator[tuple[str, str, str]]:
    advice = "save the policy file of that version again"
    for row in wh.rows("SELECT policy_digest, body::TEXT AS body FROM policies ORDER BY policy_digest"):
        try:
            GatePolicy.model_validate_json(row["body"])
        except ValidationError as error:
            yield row["policy_digest"], _unreadable(error), advice
            continue
        # By the body as it was stored: a field that a later release adds must not change what was signed off then.
        if (digest := digest_of(json.loads(row["body"]))) != row["policy_digest"]:
            yield row["policy_digest"], f"its body has the digest {digest}", advice


def _wrong_audit(wh: Warehouse) -> Iterator[tuple[str, str, str]]:
    for found in check_chain(entries(wh)):
        yield found.what, found.found, "the trail was tampered with: compare it with its copy in the store (`errata audit`)"


def _wrong_actions(wh: Warehouse) -> Iterator[tuple[str, str, str]]:
    for problem in audit_problems(wh):
        yield problem.split(" is ")[0], problem, "somebody changed the queue's trail: restore the warehouse from a copy"


def _unreadable(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"cannot be read as a record: {'.'.join(map(str, first['loc']))}: {first['msg']}"


_DIGESTS: dict[str, Callable[[Warehouse], Iterator[tuple[str, str, str]]]] = {
    "facts": _wrong_facts,
    "edit_requests": _wrong_requests,
    "probes": _wrong_probes,
    "probe_sets": _wrong_probe_sets,
    "policies": _wrong_policies,
    "audit": _wrong_audit,
    "quarantine_actions": _wrong_actions,
}


def check(wh: Warehouse) -> list[Finding]:
    """Everything wrong in the warehouse, errors first; an empty list means that it holds together.

    Reads only. Cost: one pass over each table, and one digest for each fact, request, probe and policy.
    """
    findings = [
        Finding(
            check=rule.check, severity=rule.severity, table=rule.table, key=row["key"], found=row["found"], advice=rule.advice
        )
        for rule in (*_REFERENCES, *_OTHERS)
        for row in wh.rows(rule.sql)
    ]
    findings += [
        Finding(check="digest", severity="error", table=table, key=key, found=found, advice=advice)
        for table, wrong in _DIGESTS.items()
        for key, found, advice in wrong(wh)
    ]
    return sorted(findings, key=lambda f: (f.severity, f.table, f.check, f.key, f.found))
