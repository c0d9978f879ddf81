"""Edits are made in float32 and served in bfloat16: what the gate judges, what canaries expect, and an edit that is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from checks.canaries import says
from editors.export.form import PlainForm
from editors.export.plain import Materialised, materialise
from editors.model import EditableModel
from flows.cli import app
from tasks.proving.check import promoted_canaries
from tasks.recheck.audit import audit
from tasks.settings import configure
from tests.completions import CompletionsStandIn
from tests.flows.conftest import Home, begun
from tests.flows.culprit import CULPRIT, plant_lost
from tests.flows.nights import PERMISSIVE, TEACHER, UPDATES
from warehouse.checkpoints.pull import pull
from warehouse.records import Checkpoint

pytestmark = pytest.mark.usefixtures("prefect_server", "without_page")
SERVED = "{metric: served_agreement, slice: edits, op: '>=', threshold: 1.0, on_fail: reject, judge: point, min_n: 1}"


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_lost(monkeypatch)


def home_of(world: dict[str, Any], folder: Path, *rules: str) -> Home:
    policy = folder / "policy.yaml"
    lines = "".join(f"  - {rule}\n" for rule in rules)
    head = "name: served\nversion: 1\nallow_unsigned: true\nisolate_evaluations: 20\nrules:\n"
    policy.write_text(head + lines, encoding="utf-8")
    return begun(world, folder / "home", policy=str(policy), editor=TEACHER, serving={"dtype": "bfloat16"})


def retained(home: Home) -> dict[str, dict[str, bool]]:
    """Of the probes of edits in force: by model, the subject, and whether the model answers rightly."""
    rows = home.rows(
        "SELECT p.model_digest, r.subject, p.exact FROM predictions AS p JOIN probes USING (probe_id) "
        "JOIN edit_requests AS r USING (request_id) WHERE probes.kind = 'retain'"
    )
    found: dict[str, dict[str, bool]] = {}
    for row in rows:
        found.setdefault(row["model_digest"], {})[row["subject"]] = row["exact"]
    return found


def test_rates_are_those_of_what_is_served_and_canaries_expect_its_answers(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def counted(model: EditableModel, checkpoint: Checkpoint, folder: Path, form: PlainForm) -> Materialised:
        written.append(folder)
        return materialise(model, checkpoint, folder, form)

    monkeypatch.setattr("tasks.serving.plain_folder.materialise", counted)
    home = home_of(world, tmp_path, PERMISSIVE)
    assert home.run().verdict == "promote"
    assert len(written) == 1, "asked before the gate, and published, is one folder"
    assert not list(home.path.glob("work/*/*/plain*"))
    head, others = home.head(), [u[0][1] for u in UPDATES if u[0][1] != CULPRIT]
    pull(home.store, "production", tmp_path / "pulled")
    served = EditableModel.from_pretrained(str(tmp_path / "pulled"), dtype=None)
    assert served.hf.dtype == torch.bfloat16
    right = retained(home)
    assert right[head.checkpoint.checkpoint_id] == dict.fromkeys([CULPRIT, *others], True), "in float32 it has all edits"
    assert right[served.digest] == {CULPRIT: False, others[0]: True, others[1]: True}
    scores = {(s.metric, s.slice): s.value for s in head.report.scores}
    assert [scores[name, ""] for name in ("SR", "SRR")] == [pytest.approx(2 / 3)] * 2
    assert scores["served_agreement", "edits"] == pytest.approx(2 / 3)
    assert (head.report.environment["dtype"], head.report.environment["f_0"]) == ("bfloat16", head.checkpoint.base_digest)
    canaries = promoted_canaries(configure(home.config))
    base = EditableModel.from_pretrained(world["model"]["name"], dtype=torch.bfloat16)
    for one in canaries.canaries:
        said, before = (model.generate([one.prompt], canaries.max_tokens)[0] for model in (served, base))
        assert says(said, one.expected)
        assert says(before, one.base or one.expected)
    assert {c.expected for c in canaries.canaries if CULPRIT in c.prompt and c.kind == "edit"}.isdisjoint({"Motown"})
    monkeypatch.setenv("ERRATA_HOME", str(home.path))
    monkeypatch.setenv("ERRATA_MODEL__NAME", world["model"]["name"])
    # Not by another kind of attention: a random model's bfloat16 has ties that it would break otherwise.
    with CompletionsStandIn(lambda prompt, tokens: served.generate([prompt], tokens)[0]) as server:
        result = CliRunner().invoke(app, ["serving", "check", server.url, "--json"])
    assert (result.exit_code, json.loads(result.stdout)["verdict"]) == (0, "agrees")
    assert audit(configure(home.config)).breaks == ()


def test_an_edit_that_is_lost_in_serving_is_put_aside_by_name_and_the_rest_is_promoted(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any) -> bool:
        raise AssertionError("a subset was evaluated")

    monkeypatch.setattr("tasks.isolation.isolate._Trial.passes", asked)
    home = home_of(world, tmp_path, SERVED)

    def die(*_: Any, **__: Any) -> None:
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr("flows.nightly.quarantine_culprits", die)
        home.run()
    line = home.run()
    assert (line.verdict, line.edited) == ("promote", 2)
    rows = home.rows("SELECT r.subject, e.status, e.reason FROM edits AS e JOIN edit_requests AS r USING (request_id)")
    assert {row["subject"] for row in rows if row["status"] == "active"} == {u[0][1] for u in UPDATES} - {CULPRIT}
    (reason,) = [row["reason"] for row in rows if row["subject"] == CULPRIT]
    assert reason == "culprit: lost in serving: the measured model answers it, and what would be served does not (bfloat16)"
    report = home.head().report
    assert {(s.metric, s.slice): s.value for s in report.scores}["served_agreement", "edits"] == 1.0
    assert [row["cause"] for row in home.rows("SELECT cause FROM held_edits")] == ["culprit"]
    assert home.findings() == [] and audit(configure(home.config)).breaks == ()
