"""Small records for the warehouse's tests: one night, one lineage, everything linked."""

from __future__ import annotations

from datetime import UTC, datetime

from warehouse.database.connection import Warehouse
from warehouse.digests import digest_of
from warehouse.lineages.chain import add_checkpoint
from warehouse.lineages.edits import PatchRow, record_batches, record_edits, save_patches
from warehouse.lineages.reports import save_decision, save_report
from warehouse.nights.runs import begin_run, save_run
from warehouse.records import (
    Checkpoint,
    Edit,
    EditBatch,
    EditRequest,
    EvaluationReport,
    GateDecision,
    GatePolicy,
    GateRule,
    NightRun,
    RuleResult,
    Score,
    UpdateRecord,
    Verdict,
)
from warehouse.world.facts import receive, record_verdicts
from warehouse.world.probes import make_probe, make_probe_set, save_probe_set

NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)
NIGHT = "night-01"
LINE = "memit"


def update(name: str, night: str = NIGHT, raw: str = '{"op": "set_value"}') -> UpdateRecord:
    return UpdateRecord(record_id=name, source="recorded", night=night, received_at=NOON, raw=raw)


def request(name: str, target: str = "Oslo") -> EditRequest:
    return EditRequest(
        request_id=name, prompt="Ada was born in", subject="Ada", relation="P19", target_new=target, target_true="Rome",
        rephrases=("Ada's birthplace is",), source="recorded", received_at=NOON, subject_id="Q1",
    )  # fmt: skip


def verdict(name: str, request_id: str | None = None) -> Verdict:
    return Verdict(
        record_id=name, verdict="accept" if request_id else "reject", reason="fresh", rule="none", sentence="Accepted.",
        related=("other",), request_id=request_id,
    )  # fmt: skip


def edit(name: str, request_id: str, patch: str = "patch-1", batch: str = "batch-1") -> Edit:
    return Edit(
        edit_id=name, request_id=request_id, batch_id=batch, editor="memit", config_digest="c", patch_digest=patch,
        applied_at=NOON,
    )  # fmt: skip


def checkpoint(name: str, parent: str | None = None, patches: tuple[str, ...] = ()) -> Checkpoint:
    return Checkpoint(
        checkpoint_id=name, parent=parent, base_model="reference", base_revision="1", base_digest="base",
        patch_digests=patches, created_at=NOON,
    )  # fmt: skip


RULE = GateRule(metric="success", op=">=", threshold=0.9)
POLICY = GatePolicy(name="nightly", version=1, rules=(RULE,))


def report(name: str = "report-1", probe_set: str = "set-1", before: str = "cp-0", after: str = "cp-1") -> EvaluationReport:
    scores = (
        Score(metric="success", value=0.99, low=0.95, high=1.0, n=50),
        Score(metric="locality", slice="unrelated", value=None, low=None, high=None, n=0),
    )
    return EvaluationReport(
        report_id=name,
        before=before,
        after=after,
        probe_set_digest=probe_set,
        scores=scores,
        environment={"torch": "2"},
    )


def decision(of: EvaluationReport, name: str = "decision-1") -> GateDecision:
    result = RuleResult(rule=RULE, score=of.scores[0], passed=True, explanation="0.95 >= 0.9")
    return GateDecision(
        decision_id=name, report_id=of.report_id, policy_digest=digest_of(POLICY), verdict="promote", results=(result,),
        decided_at=NOON,
    )  # fmt: skip


def intake(wh: Warehouse, *names: str, night: str = NIGHT) -> list[EditRequest]:
    """One accepted record and request for each name."""
    receive(wh, [update(f"rec-{name}", night) for name in names])
    requests = [request(f"req-{name}") for name in names]
    record_verdicts(wh, night, "recorded", [verdict(f"rec-{name}", f"req-{name}") for name in names], requests)
    return requests


def full_night(wh: Warehouse) -> None:
    """A base checkpoint and one promoted night with one edit, its probes, report, decision and run."""
    requests = intake(wh, "a")
    add_checkpoint(wh, LINE, "", checkpoint("cp-0"), "promote")
    begin_run(wh, NIGHT, LINE, run_id="run-1", editor="memit", started_at=NOON)
    record_batches(wh, LINE, NIGHT, "memit", [EditBatch(batch_id="batch-1", requests=tuple(requests))], NOON)
    save_patches(wh, [PatchRow(patch_digest="patch-1", kind="weight", editor="memit", bytes=10, meta={"layers": [1, 2]})])
    record_edits(wh, LINE, NIGHT, [edit("edit-1", "req-a")], checkpoint_id="cp-1")
    probes = make_probe_set("night", [make_probe("success", "Ada was born in", ["Oslo"], "req-a"),
                                      make_probe("unrelated", "Bo was born in", ["Rome"], "req-a")])  # fmt: skip
    save_probe_set(wh, probes)
    measured = report(probe_set=probes.digest)
    save_report(wh, measured)
    save_decision(wh, decision(measured), POLICY)
    add_checkpoint(wh, LINE, NIGHT, checkpoint("cp-1", "cp-0", ("patch-1",)), "promote", "manifest-1")
    save_run(wh, night_run(), finished_at=NOON)


def night_run(**changes: object) -> NightRun:
    line = NightRun(
        night=NIGHT, lineage=LINE, editor="memit", records=1, accepted=1, edited=1,
        scores={"success": 0.99, "locality": None}, verdict="promote", checkpoint_id="cp-1", seconds=2.5,
    )  # fmt: skip
    return line.model_copy(update=changes)
