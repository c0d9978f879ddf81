"""A warehouse of as many nights as asked for, made by SQL in the proportions of the demo's: what pages are measured on.

Of each night: one and a half records for an edit, seven probes for an edit, asked before and after; 840 standing probes
and up to 1,000 edits of earlier nights, asked after; a report with the scores that the policy judges, a decision, a
checkpoint, five entries of the trail. One night in ten is rejected, one in thirty held, and every seventh day is missing.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from checks.gates.decide import load_policy
from warehouse.database.connection import Warehouse
from warehouse.digests import digest_of, sha256_bytes
from warehouse.lineages.audit import GENESIS
from warehouse.nights.order import register
from warehouse.records import GatePolicy, GateRule

LINEAGE = "main"
#: Facts of the world beside the edited ones; standing probes of each night; earlier edits asked again.
FACTS, STANDING, RETAINED = 5_514, 840, 1_000
#: What a page must never show as markup.
MARKUP = "<script>alert(1)</script><b>&\"'"


def subject_key(night: int, edit: int) -> str:
    return f"Q{night * 1000 + edit}"


def generate(path: Path, nights: int, edits: int) -> None:
    """Write the warehouse; a thousand nights of a hundred edits are 3.4 million answers.

    Args:
        edits: of each night, at most 1,000.
    """
    policy = load_policy("nightly")
    with Warehouse.open(path) as wh:
        size = {"nights": nights, "edits": edits, "records": edits * 3 // 2, "lineage": LINEAGE}
        for statement in _world(), *_nights(), *_answers():
            asked = {name: value for name, value in size.items() if f"${name}" in statement}
            wh.execute(statement, asked)
        _judge(wh, policy)
        _trail(wh)
        register(wh, [row["night"] for row in wh.rows("SELECT night FROM runs ORDER BY night")])


#: Night number n, without every seventh day; n = 0 is the base.
_DAYS = """
    SELECT n, 'night-' || strftime(DATE '2023-01-01' + (n + n // 6)::INTEGER, '%Y-%m-%d') AS night,
           (DATE '2023-01-01' + (n + n // 6)::INTEGER)::TIMESTAMPTZ + INTERVAL 22 HOUR AS moment,
           CASE WHEN n % 10 = 7 THEN 'reject' WHEN n % 30 = 13 THEN 'hold' ELSE 'promote' END AS verdict,
           sha256('checkpoint ' || n) AS id,
           -- The last night before it that was promoted.
           sha256('checkpoint ' || CASE WHEN n = 1 THEN 0 WHEN (n - 1) % 10 = 7 OR (n - 1) % 30 = 13 THEN n - 2 ELSE n - 1 END)
               AS parent
    FROM range(1, $nights + 1) AS t(n)
"""
_EACH = f"({_DAYS}) AS d CROSS JOIN range($edits) AS k(e)"
_KEYS = """'Q' || (n * 1000 + e) AS subject_id, 'Subject ' || n || ' ' || e || CASE WHEN e = 0 THEN ' ' ||
    '<script>alert(1)</script><b>&"''' ELSE '' END AS subject, 'rq-' || n || '-' || e AS request_id,
    'Place ' || (n * 7 + e) % 500 AS target_new"""


def _world() -> str:
    return f"""INSERT INTO facts BY NAME
        SELECT sha256('fact ' || i) AS fact_id, 'Q' || (900000000 + i) AS subject_id, 'Known ' || i AS subject,
               'P19' AS relation, 'Q' || i % 100 AS object_id, 'Town ' || i % 100 AS object,
                   'normal' AS rank, 'generated' AS source,
               '' AS known_from_night FROM range({FACTS}) AS t(i)"""


def _nights() -> list[str]:
    return [
        f"""INSERT INTO facts BY NAME
            SELECT sha256('edited ' || n || ' ' || e) AS fact_id, subject_id, subject, 'P19' AS relation, 'Q1' AS object_id,
                   target_new AS object, 'normal' AS rank, 'night:' || night || ':r' || n || '-' || e AS source,
                   2000000000 + n AS revision, night AS known_from_night FROM (SELECT *, {_KEYS} FROM {_EACH})""",
        f"""INSERT INTO updates BY NAME
            SELECT 'recorded' AS source, 'r' || n || '-' || e AS record_id, night, moment AS received_at,
                   '{{"record_id": "r' || n || '-' || e || '", "comment": "' || repeat('x', 500) || '"}}' AS raw,
                   n * 100000 + e AS received_seq
            FROM ({_DAYS}) AS d CROSS JOIN range($records) AS k(e)""",
        f"""INSERT INTO verdicts BY NAME
            SELECT 'recorded' AS source, 'r' || n || '-' || e AS record_id, night,
                   CASE WHEN e < $edits THEN 'accept' WHEN e % 3 = 0 THEN 'quarantine' ELSE 'reject' END AS verdict,
                   CASE WHEN e < $edits THEN 'new_fact' WHEN e % 2 = 0 THEN 'logical_conflict' ELSE 'type_conflict' END
                       AS reason, reason AS rule, 'hard' AS confidence,
                   'Subject ' || n || ' ' || e || ': a sentence of the rule' AS sentence,
                   []::TEXT[] AS related, CASE WHEN e < $edits THEN 'rq-' || n || '-' || e END AS request_id
            FROM ({_DAYS}) AS d CROSS JOIN range($records) AS k(e)""",
        f"""INSERT INTO edit_requests BY NAME
            SELECT request_id, night, subject || ' was born in' AS prompt, subject, 'P19' AS relation, target_new,
                   'Town ' || e AS target_true, ['The birthplace of ' || subject || ' is'] AS rephrases, 'recorded' AS source,
                   subject_id, 'Q2' AS target_new_id, 'modify' AS kind, sha256(request_id) AS content_digest
            FROM (SELECT *, {_KEYS} FROM {_EACH})""",
        f"""INSERT INTO edits BY NAME
            SELECT $lineage AS lineage, sha256('edit ' || n || ' ' || e)[:24] AS edit_id, 'rq-' || n || '-' || e AS request_id,
                   'b' || n AS batch_id, 'ledger' AS editor, sha256('config') AS config_digest,
                   sha256('patch ' || n) AS patch_digest,
                   moment AS applied_at, night, id AS checkpoint_id,
                   CASE WHEN verdict = 'promote' THEN 'active' ELSE 'rejected' END AS status, n * 1000 + e AS edit_seq
            FROM {_EACH}""",
        f"""INSERT INTO checkpoints BY NAME
            SELECT $lineage AS lineage, id AS checkpoint_id, parent, 'local' AS base_model, '' AS base_revision,
                   sha256('base') AS base_digest, [sha256('patch ' || i) FOR i IN range(1, n + 1)] AS patch_digests,
                   moment AS created_at, night, verdict FROM ({_DAYS})
            UNION ALL SELECT $lineage, sha256('checkpoint 0'), NULL, 'local', '', sha256('base'), [], TIMESTAMPTZ '2023-01-01',
                   '', 'promote'""",
        f"""INSERT INTO heads BY NAME
            SELECT $lineage AS lineage, n AS seq, id AS checkpoint_id, moment AS moved_at,
                   'promoted in night ' || night AS reason
            FROM ({_DAYS}) WHERE verdict = 'promote'""",
        f"""INSERT INTO runs BY NAME
            SELECT night, $lineage AS lineage, 'run ' || n AS run_id, 'ledger' AS editor, 'published' AS state,
                   moment AS started_at,
                   moment + INTERVAL 20 MINUTE AS finished_at, 1200.5 AS seconds, $records AS records, $edits AS accepted,
                   $edits AS edited, '{{}}'::JSON AS scores, verdict, id AS checkpoint_id,
                   json_object('decision_id', sha256('decision ' || n), 'reached_after',
                       json_object('received', 10.0, 'edited', 400.0, 'evaluated', 1000.0, 'decided', 1001.0)) AS details
                   FROM ({_DAYS})""",
    ]


def _answers() -> list[str]:
    """Probes of each night, and what was answered to them before and after."""
    kinds = "['success', 'rephrase', 'rephrase', 'neighbourhood', 'neighbourhood', 'unrelated', 'obsolete']"
    asked = f"(SELECT d.*, e, j FROM {_EACH} CROSS JOIN range(7) AS p(j))"
    probe = "sha256('probe ' || n || ' ' || e || ' ' || j)"
    answer = "' Place ' || (n * 7 + e) % 500 || '.'"
    columns = "true AS exact, 1.0 AS token_accuracy, -0.25 AS log_prob"
    return [
        f"""INSERT INTO probes BY NAME
            SELECT sha256('set ' || n) AS set_digest, {probe} AS probe_id, {kinds}[j + 1] AS kind,
                   'Question ' || j || ' of Subject ' || n || ' ' || e AS prompt, ['Place ' || (n * 7 + e) % 500] AS targets,
                   'rq-' || n || '-' || e AS request_id FROM {asked}""",
        f"""INSERT INTO probes BY NAME
            SELECT sha256('set ' || n) AS set_digest, sha256('standing ' || j) AS probe_id, 'drawdown' AS kind,
                   'Known ' || j || ' was born in' AS prompt, ['Town ' || j] AS targets
            FROM ({_DAYS}) CROSS JOIN range({STANDING}) AS p(j)""",
        f"""INSERT INTO predictions BY NAME
            SELECT parent AS model_digest, {probe} AS probe_id, j > 2 AS exact, 1.0 AS token_accuracy, -2.5 AS log_prob,
                   CASE WHEN j > 2 THEN {answer} ELSE ' Town ' || e END AS text FROM {asked}""",
        f"""INSERT INTO predictions BY NAME
            SELECT id AS model_digest, {probe} AS probe_id, {columns}, {answer} AS text FROM {asked}""",
        f"""INSERT INTO predictions BY NAME
            SELECT id AS model_digest, sha256('standing ' || j) AS probe_id, {columns}, ' Town ' || j AS text
            FROM ({_DAYS}) CROSS JOIN range({STANDING}) AS p(j)""",
        # Earlier edits, spread over all nights before; the number of one is what its night and place in it make.
        f"""INSERT INTO predictions BY NAME
            SELECT DISTINCT id AS model_digest,
                   sha256('probe ' || (1 + r * 7919 % (n - 1)) || ' ' || r % $edits || ' 0') AS probe_id, {columns},
                   ' Place' AS text
            FROM ({_DAYS}) CROSS JOIN range({RETAINED}) AS t(r) WHERE n > 1 AND r < (n - 1) * $edits""",
    ]


def _judge(wh: Warehouse, policy: GatePolicy) -> None:
    """Reports with scores around the bars of the policy, and decisions on them."""
    digest = digest_of(policy)
    wh.append(
        "policies",
        [{"policy_digest": digest, "name": policy.name, "version": policy.version, "body": policy.model_dump(mode="json")}],
    )
    nights = wh.rows(
        """SELECT n, c.checkpoint_id, c.parent, r.verdict, r.started_at FROM (
               SELECT *, row_number() OVER (ORDER BY started_at) AS n FROM runs) AS r
           JOIN checkpoints AS c USING (lineage, checkpoint_id) ORDER BY n"""
    )
    rules = [*policy.rules, policy.rules[0].model_copy(update={"metric": "ESR", "threshold": 0.9})]
    reports, scores, decisions = [], [], []
    for row in nights:
        n, report_id = row["n"], digest_of(["report", row["n"]])
        results = [_held(rule, n, failed=row["verdict"] == "reject" and not place) for place, rule in enumerate(rules)]
        scores += [result["score"] | {"report_id": report_id, "position": place} for place, result in enumerate(results)]
        reports.append(
            {
                "report_id": report_id,
                "before": row["parent"],
                "after": row["checkpoint_id"],
                "probe_set_digest": _sha(f"set {n}"),
                "environment": json.dumps({"editor": "ledger"}),
            }
        )
        decisions.append(
            {
                "decision_id": _sha(f"decision {n}"),
                "report_id": report_id,
                "policy_digest": digest,
                "verdict": row["verdict"],
                "results": json.dumps(results),
                "decided_at": row["started_at"],
            }
        )
    wh.append("reports", reports)
    wh.append("scores", scores)
    wh.append("decisions", decisions)


def _held(rule: GateRule, n: int, *, failed: bool) -> dict[str, Any]:
    """The rule with a score a little beyond its bar on the right side, or on the wrong one."""
    room = 0.02 if failed else -0.015 - (n * 37 % 100) / 7_000
    value = rule.threshold - room if rule.op == ">=" else rule.threshold + room
    score = {"metric": rule.metric, "slice": rule.slice, "value": value, "low": value - 0.02, "high": value + 0.02, "n": 100}
    return {"rule": rule.model_dump(mode="json"), "score": score, "passed": not failed, "explanation": "generated"}


def _trail(wh: Warehouse) -> None:
    """Five entries for each night; their links hold, their digests are of nothing but their number."""
    kinds = ("verdicts", "edits", "decision", "promotion", "serving")
    nights = [row["night"] for row in wh.rows("SELECT night FROM runs ORDER BY night")]
    digests = [GENESIS, *(_sha(f"entry {i}") for i in range(len(nights) * len(kinds)))]
    same = {"lineage": LINEAGE, "actor": "errata", "reason": "", "payload": "{}", "noted_at": datetime(2025, 1, 1, tzinfo=UTC)}
    entries = [
        {"seq": i + 1, "kind": kinds[i % 5], "subject": nights[i // 5], "previous": digests[i], "digest": digests[i + 1]}
        for i in range(len(nights) * 5)
    ]
    wh.append("audit", entries, constants=same)


def _sha(text: str) -> str:
    return sha256_bytes(text.encode())
