"""When culprits are looked for at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checks.gates.decide import decide, load_policy
from tasks.candidate import Candidate
from tasks.isolation.culprits import Culprit, Isolated
from tasks.isolation.group_testing import Isolation
from tasks.isolation.isolate import isolate_culprits
from tasks.settings import Settings
from tests.checks.support import NOW, report, score
from warehouse.records import EvaluationReport, GateDecision, Score

NIGHT = Candidate.model_construct(night="night-01", edited=tuple(f"edit-{i}" for i in range(30)), parent=None)
NIGHT_WHOLE = Candidate(
    night="night-01", editor="ledger", config_digest="", parent=None, base_digest="", parent_patches=(), new_patches=(),
    edited=NIGHT.edited, skipped=(), right_after=(), edit_seconds=0.0, patch_bytes=0,
)  # fmt: skip
#: Scores of the first night of SmolLM2-135M, asked in bare statements.
SMOLLM2 = report(
    score("SR", 0.91, 0.75, 0.97, 30), score("GR", 0.29, 0.2, 0.4, 30), score("SRR", 0.91, 0.75, 0.97, 30),
    score("locality", 1.0, 0.2, 1.0, 1, "neighbourhood"), score("locality", 1.0, 0.8, 1.0, 20, "unrelated"),
    score("DD", 0.0, -0.1, 0.1, 800), score("DD", 0.0, 0.0, 0.09, 41, "known"),
    score("perplexity_ratio", 1.0, 0.99, 1.01, 40),
)  # fmt: skip


def begun(*_: object) -> None:
    raise AssertionError("a search was begun")


def test_no_search_begins_where_a_model_knows_too_little_to_be_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tasks.isolation.isolate._Trial", begun)
    decision = decide(load_policy("nightly"), SMOLLM2, NOW)
    assert decision.verdict == "reject"
    with caplog.at_level("WARNING", logger="tasks.isolation.isolate"):
        assert isolate_culprits.fn(Settings(home=tmp_path), NIGHT, SMOLLM2, decision) is None
    assert "DD (known) counts 41" in caplog.text and "locality (neighbourhood) counts 1 " in caplog.text


def test_a_search_begins_once_there_are_probes_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same night, had the model known more: GR alone is short of its bar, and edits can be the cause."""
    monkeypatch.setattr("tasks.isolation.isolate._Trial", begun)
    few = {("DD", "known"): score("DD", 0.0, 0.0, 0.01, 400, "known"),
           ("locality", "neighbourhood"): score("locality", 1.0, 0.9, 1.0, 30, "neighbourhood")}  # fmt: skip
    served = score("served_agreement", 1.0, None, None, 12, "edits")
    known = report(*(few.get((s.metric, s.slice), s) for s in SMOLLM2.scores), served)
    decision = decide(load_policy("nightly"), known, NOW)
    assert [r.rule.metric for r in decision.failed_rules if r.rule.on_fail == "reject"] == ["GR"]
    with pytest.raises(AssertionError, match="a search was begun"):
        isolate_culprits.fn(Settings(home=tmp_path), NIGHT, known, decision)


# ---------------------------------------------------------------- edits that are lost in serving


def lost_night(*lost: int, **more: Score) -> tuple[EvaluationReport, GateDecision]:
    """The night above with enough probes, of which these edits are lost; `more`: scores in place of those."""
    few = {"DD": score("DD", 0.0, 0.0, 0.01, 400, "known"), "neighbours": score("locality", 1.0, 0.9, 1.0, 30, "neighbourhood"),
           "GR": score("GR", 0.9, 0.8, 1.0, 30), **more}  # fmt: skip
    instead = {(s.metric, s.slice): s for s in few.values()}
    served = score("served_agreement", 1 - len(lost) / 30, None, None, 30, "edits")
    found = report(*(instead.get((s.metric, s.slice), s) for s in SMOLLM2.scores), served)
    found = found.model_copy(update={"environment": {"served_lost": " ".join(f"edit-{i}" for i in lost), "served": "bfloat16"}})
    return found, decide(load_policy("nightly"), found, NOW)


class Trials:
    """Stands for subsets that are made and measured: `bad` edits fail the rules that are left."""

    def __init__(self, bad: frozenset[str], *made: Any) -> None:
        self.bad, self.asked = bad, []
        decision: GateDecision = made[3]
        self.rules = tuple(r.rule for r in decision.failed_rules if r.rule.on_fail == "reject")

    def passes(self, subset: frozenset[str]) -> bool:
        self.asked.append(subset)
        return not subset & self.bad

    def fails_without(self) -> tuple[str, ...]:
        return ()

    def evidence(self, name: str, kept: frozenset[str]) -> Culprit:
        return Culprit(request_id=name, broken=1, probes=())

    def rest(self, isolation: Isolation) -> Candidate:
        return NIGHT_WHOLE.model_copy(update={"edited": isolation.kept})


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Trials]]:
    """Give them the edits that are bad; what was begun is in the list."""

    def plan(*bad: int) -> list[Trials]:
        begun: list[Trials] = []

        def begin(*made: Any) -> Trials:
            begun.append(Trials(frozenset(f"edit-{i}" for i in bad), *made))
            return begun[-1]

        monkeypatch.setattr("tasks.isolation.isolate._Trial", begin)
        return begun

    return plan


def isolated(tmp_path: Path, found: EvaluationReport, decision: GateDecision) -> Isolated | None:
    return isolate_culprits.fn(Settings(home=tmp_path), NIGHT_WHOLE, found, decision)


def test_what_is_lost_alone_needs_no_evaluation(tmp_path: Path, trials: Callable[..., list[Trials]]) -> None:
    begun = trials()
    found = isolated(tmp_path, *lost_night(3, 7))
    assert found is not None and begun[0].asked == []
    assert [c.request_id for c in found.culprits] == ["edit-3", "edit-7"] and {c.lost for c in found.culprits} == {"bfloat16"}
    assert len(found.rest.edited) == 28 and found.isolation.evaluations == 0 and not found.isolation.exact


def test_beside_what_is_lost_other_culprits_are_looked_for(tmp_path: Path, trials: Callable[..., list[Trials]]) -> None:
    begun = trials(5)
    found = isolated(tmp_path, *lost_night(3, GR=score("GR", 0.1, 0.0, 0.2, 30)))
    assert found is not None and all("edit-3" not in subset for subset in begun[0].asked)
    assert {c.request_id: c.lost for c in found.culprits} == {"edit-3": "bfloat16", "edit-5": ""}
    assert set(found.isolation.kept) == set(NIGHT_WHOLE.edited) - {"edit-3", "edit-5"}


def test_where_the_rest_passes_only_what_is_lost_is_put_aside(tmp_path: Path, trials: Callable[..., list[Trials]]) -> None:
    begun = trials()
    found = isolated(tmp_path, *lost_night(3, SR=score("SR", 0.1, 0.0, 0.2, 30)))
    assert found is not None and [c.request_id for c in found.culprits] == ["edit-3"] and len(begun[0].asked) == 1


def test_a_night_of_which_all_is_lost_has_no_rest(
    tmp_path: Path, trials: Callable[..., list[Trials]], caplog: pytest.LogCaptureFixture
) -> None:
    trials()
    with caplog.at_level("WARNING", logger="tasks.isolation.isolate"):
        assert isolated(tmp_path, *lost_night(*range(30))) is None
    assert "all 30 edits are lost in serving" in caplog.text


def test_what_is_lost_of_earlier_nights_is_no_edit_of_this_one(
    tmp_path: Path, trials: Callable[..., list[Trials]], caplog: pytest.LogCaptureFixture
) -> None:
    begun = trials()
    found, decision = lost_night(3)
    found = found.model_copy(update={"environment": {"served_lost": "an-edit-of-before"}})
    with caplog.at_level("WARNING", logger="tasks.isolation.isolate"):
        assert isolated(tmp_path, found, decision) is None
    assert begun == [] and "served_agreement (edits) is measured of the whole night alone" in caplog.text
