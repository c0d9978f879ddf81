"""When culprits are looked for at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from checks.gates.decide import decide, load_policy
from tasks.candidate import Candidate
from tasks.isolation.isolate import isolate_culprits
from tasks.settings import Settings
from tests.checks.support import NOW, report, score

NIGHT = Candidate.model_construct(night="night-01", edited=tuple(f"edit-{i}" for i in range(30)), parent=None)
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
