"""Nights by proof: what they find is what nights find that ask everything, and a wrong kept answer is found out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from editors.proof.answers import KeptAnswers
from tasks.recheck.answers import proved_again
from tasks.recheck.audit import audit
from tasks.settings import configure
from tasks.workspace import warehouse
from tests.flows.conftest import Home, begun, no_page
from warehouse.lineages.reports import reports_after
from warehouse.records import EvaluationReport, Score

pytestmark = pytest.mark.usefixtures("prefect_server", "without_page")
NIGHTS = ("night-01", "night-02")
LEDGER = {"name": "ledger"}


def nights(world: dict[str, Any], folder: Path, **config: Any) -> Home:
    home = begun(world, folder, editor=LEDGER, **config)
    with pytest.MonkeyPatch.context() as patched:
        no_page(patched)
        for night in NIGHTS:
            assert home.run(night).verdict == "promote"
    return home


@pytest.fixture(scope="module")
def proved(prefect_server: None, world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Home:
    return nights(world, tmp_path_factory.mktemp("proved") / "home")


@pytest.fixture(scope="module")
def asked(prefect_server: None, world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Home:
    return nights(world, tmp_path_factory.mktemp("asked") / "home", probes={**world["probes"], "proof_bytes": 0})


def reports(home: Home) -> list[EvaluationReport]:
    rows = home.rows("SELECT checkpoint_id FROM checkpoints WHERE night LIKE 'night-%' ORDER BY night")
    with warehouse(configure(home.config)) as wh:
        return [reports_after(wh, row["checkpoint_id"])[-1] for row in rows]


def found(report: EvaluationReport) -> list[Score]:
    return [score for score in report.scores if score.metric != "efficiency"]


def predictions(home: Home) -> list[dict[str, Any]]:
    return home.rows("SELECT * FROM predictions ORDER BY model_digest, probe_id")


def test_a_night_by_proof_finds_what_a_night_finds_that_asks_everything(proved: Home, asked: Home) -> None:
    for one, other in zip(reports(proved), reports(asked), strict=True):
        assert found(one) == found(other) and one.report_id == other.report_id
    assert predictions(proved) == predictions(asked)


def test_the_report_and_the_nights_line_say_how_many_answers_were_proved(proved: Home, asked: Home) -> None:
    second = reports(proved)[-1].environment
    assert int(second["answers_proved"]) > 0 and int(second["answers_asked"]) > 0
    assert reports(asked)[-1].environment["answers_proved"] == "0"
    rows = {row["night"]: json.loads(row["details"]) for row in proved.rows("SELECT night, details::TEXT AS details FROM runs")}
    assert rows["night-02"]["answers"] == {"proved": int(second["answers_proved"]), "asked": int(second["answers_asked"])}
    summary = (configure(proved.config).reports / "main" / "night-02" / "summary.md").read_text(encoding="utf-8")
    assert f"{int(second['answers_proved']):,} answers were proved, {int(second['answers_asked']):,} were asked." in summary


@pytest.fixture
def own(proved: Home, tmp_path: Path) -> Home:
    """A copy that a test may change."""
    shutil.copytree(proved.path, tmp_path / "home")
    return Home({**proved.config, "home": str(tmp_path / "home")})


def test_a_deep_audit_finds_a_wrong_kept_answer(own: Home, tmp_path: Path) -> None:
    settings = configure(own.config)
    assert proved_again(settings) == []
    (path,) = (own.path / "proofs").glob("*/*.answers")
    held, wrong = KeptAnswers(path.parent), KeptAnswers(tmp_path / "wrong")
    for key, answer in held.items():
        wrong.put(key, replace(answer, log_prob=answer.log_prob + 1e-12) if answer.num_tokens else answer)
    wrong.save()
    (planted,) = (tmp_path / "wrong").glob("*.answers")
    planted.replace(path)  # whole, by its digest
    told = audit(settings, deep=True).breaks
    assert told and all(b.what.startswith("proved answer to ") and "proofs" in b.found for b in told)


def test_a_home_without_proofs_has_nothing_to_recheck(asked: Home) -> None:
    assert proved_again(configure(asked.config)) == []
    assert not (asked.path / "proofs").exists()
