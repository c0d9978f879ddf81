"""A night with a planted culprit: the rest is promoted, the culprit is held with evidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.ledger.ledger import Ledger
from editors.ledger.subject_values import solve_subject
from editors.model import EditableModel
from editors.patches.slots import Slot
from tasks.isolation.culprits import Culprit
from tasks.recheck.audit import audit
from tasks.settings import configure
from tests.flows.conftest import Home, begun
from tests.flows.culprit import CULPRIT, RULE, plant
from tests.flows.nights import TEACHER, UPDATES
from warehouse.records import EditRequest

pytestmark = pytest.mark.usefixtures("bare_nights")


class Broken(Exception):
    """Stands for a power cut."""


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)


def home_with(
    world: dict[str, Any], folder: Path, evaluations: int, editor: dict[str, Any] = TEACHER, rule: str = RULE
) -> Home:
    policy = folder / "policy.yaml"
    policy.write_text(
        f"name: isolating\nversion: 1\nallow_unsigned: true\nisolate_evaluations: {evaluations}\nrules:\n  - {rule}\n",
        encoding="utf-8",
    )
    return begun(world, folder / "home", policy=str(policy), editor=editor)


def ledger(home: Home) -> dict[tuple[str, str], str]:
    rows = home.rows("SELECT r.subject, e.status, e.reason FROM edits AS e JOIN edit_requests AS r USING (request_id)")
    return {(row["subject"], row["status"]): row["reason"] for row in rows}


@pytest.mark.usefixtures("planted")
def test_the_rest_of_a_rejected_night_is_promoted_through_kills(world: dict[str, Any], tmp_path: Path) -> None:
    home = home_with(world, tmp_path, 20)

    def die(*_: Any, **__: Any) -> None:
        raise Broken

    for step in ("isolate_culprits", "quarantine_culprits", "publish_report", "close"):
        with pytest.MonkeyPatch.context() as patched, pytest.raises(Broken):
            patched.setattr(f"flows.nightly.{step}", die)
            home.run()
    line = home.run()
    others = {u[0][1] for u in UPDATES} - {CULPRIT}
    assert (line.verdict, line.edited) == ("promote", 2)
    held = ledger(home)
    assert {subject for subject, status in held if status == "active"} == others
    assert held[CULPRIT, "rejected"].startswith("culprit: beside the edits that were kept it breaks")
    assert [c["verdict"] for c in home.rows("SELECT verdict FROM checkpoints ORDER BY created_at")].count("reject") == 1
    assert home.findings() == []
    assert audit(configure(home.config)).breaks == ()
    (noted,) = home.rows("SELECT payload::TEXT AS payload FROM audit WHERE kind = 'culprits'")
    payload = json.loads(noted["payload"])
    (evidence,) = payload["culprits"].values()
    assert evidence["broken"] >= 1 and evidence["probes"]
    assert payload["isolation"]["exact"] and payload["isolation"]["evaluations"] <= 4


@pytest.mark.usefixtures("planted")
def test_no_culprit_is_looked_for_where_a_rule_lacks_probes(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def asked(*_: Any) -> bool:
        raise AssertionError("a subset was evaluated")

    monkeypatch.setattr("tasks.isolation.isolate._Trial.passes", asked)
    home = home_with(world, tmp_path, 20, rule=RULE.replace("min_n: 2", "min_n: 1000"))
    with caplog.at_level("WARNING", "tasks.isolation.isolate"):
        assert home.run().verdict == "reject"
    assert "SR counts 3 and the rule asks for 1000" in caplog.text


@pytest.mark.usefixtures("planted")
def test_a_policy_that_asks_for_no_isolation_leaves_the_night_rejected(world: dict[str, Any], tmp_path: Path) -> None:
    home = home_with(world, tmp_path, 0)
    assert home.run().verdict == "reject"
    assert home.rows("SELECT * FROM audit WHERE kind = 'culprits'") == []


def test_a_slot_that_opens_in_plain_text_is_taken_out_and_no_slot_is_solved_twice(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[str] = []
    plain = Ledger._slot

    def slot(self: Ledger, model: EditableModel, subject: str, requests: tuple[EditRequest, ...], *rest: Any) -> Slot:
        found = plain(self, model, subject, requests, *rest)
        if subject != CULPRIT:
            return found
        noise = torch.randn(2, len(found.value), generator=torch.Generator().manual_seed(0))
        return replace(found, filter=noise[0], own=1e-3, foreign=0.0, value=100 * noise[1])

    def solve(model: EditableModel, requests: Sequence[EditRequest], *rest: Any) -> tuple[torch.Tensor, bool]:
        solved.append(requests[0].subject)
        return solve_subject(model, requests, *rest)

    monkeypatch.setattr(Ledger, "_slot", slot)
    monkeypatch.setattr("editors.ledger.ledger.solve_subject", solve)
    rule = "{metric: perplexity_ratio, op: '<=', threshold: 1.02, on_fail: reject, judge: point, min_n: 1}"
    home = home_with(world, tmp_path, 20, {"name": "ledger"}, rule)
    line = home.run()
    assert (line.verdict, line.edited) == ("promote", 2)
    assert sorted(solved) == sorted(u[0][1] for u in UPDATES)
    held = ledger(home)
    assert {subject for subject, status in held if status == "active"} == {u[0][1] for u in UPDATES} - {CULPRIT}
    (prompt,) = [r["prompt"] for r in home.rows(f"SELECT prompt FROM edit_requests WHERE subject = '{CULPRIT}'")]
    # A random model learns nothing at one token, and the evidence says that too.
    assert f"of its own prompts are not learnt (success: {prompt}" in held[CULPRIT, "rejected"]
    assert home.findings() == []
    assert audit(configure(home.config)).breaks == ()


def test_the_sentence_on_a_culprit_names_what_was_seen_and_nothing_else() -> None:
    nothing = Culprit(request_id="r1", broken=0, probes=())
    assert nothing.sentence == "culprit: beside the edits that were kept the gate fails with it"
    both = Culprit(request_id="r1", broken=2, probes=(("drawdown", "a"),), missed=(("success", "b"),))
    assert both.sentence.endswith("it breaks 2 probes (drawdown: a) and 1 of its own prompts are not learnt (success: b)")
