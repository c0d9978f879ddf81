"""What was answered, measured and decided: predictions, reports with their scores, policies and gate decisions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from warehouse.database.connection import Warehouse
from warehouse.digests import canonical_json, digest_of
from warehouse.errors import Conflict, IntegrityError, NotFound
from warehouse.records import EvaluationReport, GateDecision, GatePolicy, Prediction, Record, RuleResult, Score


class Benchmark(Record):
    """One measured row of `errata bench` or `errata benchmark`."""

    bench_id: str
    created_at: datetime
    case: str
    editor: str
    mode: str
    metrics: dict[str, Any]


# ---------------------------------------------------------------- predictions


def cached_predictions(wh: Warehouse, model_digest: str, probe_ids: Iterable[str]) -> dict[str, Prediction]:
    """The stored answers of one model state to some probes, by probe id; the rest was never asked."""
    asked = pd.DataFrame({"probe_id": list(probe_ids)}, dtype="str").drop_duplicates()
    columns = ", ".join(Prediction.model_fields)
    found = wh.records(
        Prediction,
        f"SELECT {columns} FROM predictions SEMI JOIN asked USING (probe_id) WHERE model_digest = $digest",
        {"digest": model_digest},
        asked=asked,
    )
    return {prediction.probe_id: prediction for prediction in found}


def save_predictions(wh: Warehouse, predictions: Sequence[Prediction]) -> int:
    """Keep answers; one kept already stays as it is (equal model digests answer equally). Returns the new ones."""
    return wh.append("predictions", predictions)


# ---------------------------------------------------------------- reports


def save_report(wh: Warehouse, report: EvaluationReport) -> bool:
    """Store a report and its scores; True where it was new.

    Raises:
        Conflict: the report_id is there already with other content.
        ValueError: the report has two scores of one metric and slice, or a number that is NaN or infinite.
    """
    for score in report.scores:
        if any(number is not None and not math.isfinite(number) for number in (score.value, score.low, score.high)):
            raise ValueError(
                f"report {report.report_id}: {score.metric} {score.slice!r} is not finite ({score.value}, {score.low}, "
                f"{score.high}); what could not be measured has the value None"
            )
    names = [(score.metric, score.slice) for score in report.scores]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"report {report.report_id} has two scores of {twice[0]} {twice[1]!r}; give each a slice")
    with wh.transaction():
        if not _is_stored(wh, "reports", report.report_id):
            head = report.model_dump(exclude={"scores"})
            wh.append("reports", [head], "error")
            rows = [score.model_dump() | {"position": i} for i, score in enumerate(report.scores)]
            wh.append("scores", rows, "error", constants={"report_id": report.report_id})
            return True
        if canonical_json(load_report(wh, report.report_id)) != canonical_json(report):
            raise Conflict(f"report {report.report_id} is there already with other content; a report does not change")
        return False


def _is_stored(wh: Warehouse, table: str, key: str) -> bool:
    (column,) = wh.key(table)
    return bool(wh.scalar(f"SELECT count(*) FROM {table} WHERE {column} = ?", [key]))


def load_report(wh: Warehouse, report_id: str) -> EvaluationReport:
    """The report, equal to the one saved. Raises NotFound."""
    found = _reports(wh, "report_id = $id", {"id": report_id})
    if not found:
        raise NotFound(f"no report {report_id} in the warehouse")
    return found[0]


def reports_after(wh: Warehouse, checkpoint_id: str, before: str | None = None) -> list[EvaluationReport]:
    """Reports on a checkpoint (against a given one), in the order in which they were stored."""
    return _reports(wh, "after = $after AND coalesce(before = $before, true)", {"after": checkpoint_id, "before": before})


def _reports(wh: Warehouse, where: str, params: Mapping[str, Any]) -> list[EvaluationReport]:
    columns = ", ".join(Score.model_fields)
    heads = wh.rows(f"SELECT * REPLACE (environment::TEXT AS environment) FROM reports WHERE {where} ORDER BY rowid", params)
    return [
        EvaluationReport(
            **{**head, "environment": json.loads(head["environment"])},
            scores=tuple(
                wh.records(Score, f"SELECT {columns} FROM scores WHERE report_id = ? ORDER BY position", [head["report_id"]])
            ),
        )
        for head in heads
    ]


# ---------------------------------------------------------------- policies and decisions


def save_policy(wh: Warehouse, policy: GatePolicy) -> str:
    """Store a policy under its digest, which is returned; storing it again changes nothing."""
    digest = digest_of(policy)
    body = policy.model_dump(mode="json")
    wh.append("policies", [{"policy_digest": digest, "name": policy.name, "version": policy.version, "body": body}])
    return digest


def load_policy(wh: Warehouse, policy_digest: str) -> GatePolicy:
    """The policy of that digest. Raises NotFound."""
    body = wh.scalar("SELECT body::TEXT FROM policies WHERE policy_digest = ?", [policy_digest])
    if body is None:
        raise NotFound(f"no policy {policy_digest} in the warehouse")
    return GatePolicy.model_validate_json(body)


def save_decision(wh: Warehouse, decision: GateDecision, policy: GatePolicy) -> bool:
    """Store a decision with the policy that it was made by; True where it was new.

    Raises:
        NotFound: its report is not stored.
        IntegrityError: it names another policy than the one given.
        Conflict: the decision_id is there already with other content (the time of deciding aside).
    """
    if digest_of(policy) != decision.policy_digest:
        raise IntegrityError(
            f"decision {decision.decision_id} names policy {decision.policy_digest[:12]}, but policy {policy.name} "
            f"v{policy.version} has digest {digest_of(policy)[:12]}; decide again by the policy as it is now"
        )
    with wh.transaction():
        if not _is_stored(wh, "reports", decision.report_id):
            raise NotFound(f"decision {decision.decision_id} is on report {decision.report_id}, which is not stored; save it")
        save_policy(wh, policy)
        if not _is_stored(wh, "decisions", decision.decision_id):
            results = [result.model_dump(mode="json") for result in decision.results]
            wh.append("decisions", [{**decision.model_dump(exclude={"results"}), "results": results}], "error")
            return True
        held = load_decision(wh, decision.decision_id)
        if held.model_copy(update={"decided_at": decision.decided_at}) != decision:
            raise Conflict(f"decision {decision.decision_id} is there already with other content; a decision is final")
        return False


def load_decision(wh: Warehouse, decision_id: str) -> GateDecision:
    """The decision, equal to the one saved. Raises NotFound."""
    found = _decisions(wh, "decision_id = ?", decision_id)
    if not found:
        raise NotFound(f"no decision {decision_id} in the warehouse")
    return found[0]


def decision_of(wh: Warehouse, report_id: str) -> GateDecision | None:
    """The last decision made on a report, None where there is none."""
    found = _decisions(wh, "report_id = ?", report_id)
    return found[-1] if found else None


def _decisions(wh: Warehouse, where: str, value: str) -> list[GateDecision]:
    rows = wh.rows(
        f"SELECT * REPLACE (results::TEXT AS results) FROM decisions WHERE {where} ORDER BY decided_at, rowid", [value]
    )
    return [
        GateDecision(**{**row, "results": tuple(RuleResult.model_validate(r) for r in json.loads(row["results"]))})
        for row in rows
    ]


# ---------------------------------------------------------------- benchmarks


def save_benchmark(
    wh: Warehouse, case: str, editor: str, mode: str, metrics: Mapping[str, Any], created_at: datetime | None = None
) -> Benchmark:
    """Keep a measured row; its id is the digest of all of it."""
    now = created_at or datetime.now(UTC)
    row = {"case": case, "editor": editor, "mode": mode, "metrics": dict(metrics)}
    bench_id = digest_of(now.isoformat(), row)
    wh.append("benchmarks", [{**row, "bench_id": bench_id, "created_at": now}])
    return Benchmark(bench_id=bench_id, created_at=now, **row)


def benchmarks(wh: Warehouse, case: str | None = None) -> list[Benchmark]:
    """Measured rows, oldest first."""
    rows = wh.rows(
        """SELECT * REPLACE (metrics::TEXT AS metrics) FROM benchmarks WHERE coalesce("case" = $case, true)
           ORDER BY created_at, rowid""",
        {"case": case},
    )
    return [Benchmark(**{**row, "metrics": json.loads(row["metrics"])}) for row in rows]
