"""What one asks of a lineage on the command line, over a real finished night."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tests.flows.conftest import FinishedNight
from tests.flows.nights import NUM_ACCEPTED, UPDATES


@pytest.fixture
def ask(undisturbed: FinishedNight, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command on the finished home and read its JSON."""
    config = undisturbed.home.config
    monkeypatch.setenv("ERRATA_HOME", str(config["home"]))
    monkeypatch.setenv("ERRATA_POLICY", config["policy"])
    monkeypatch.setenv("ERRATA_MODEL__NAME", config["model"]["name"])
    monkeypatch.setenv("ERRATA_SOURCE__PATH", config["source"]["path"])

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return run


def test_the_log_shows_the_night_above_the_base(ask: Any) -> None:
    lines = ask("log")
    assert [line["night"] for line in lines] == ["night-01", "base"]
    assert lines[0]["marks"] == ["production"]


def test_show_lists_every_fact_in_force(ask: Any) -> None:
    assert len(ask("show", "production")["facts"]) == NUM_ACCEPTED


def test_diff_with_the_base_adds_the_night_and_moves_weights(ask: Any) -> None:
    found = ask("diff", "base", "production")
    assert len(found["added"]) == NUM_ACCEPTED
    assert found["weights"] and all(w["norm_ratio"] > 0 for w in found["weights"])


def test_blame_names_the_record_and_its_revision(ask: Any) -> None:
    (subject_id, _), (relation, _), _, (_, target) = UPDATES[0]
    (found,) = ask("blame", subject_id, relation)
    assert (found["fact"]["target_new"], found["records"], found["in_force"]) == (target, ["t01-001"], True)
    assert found["revisions"] == ["2400000001"]


def test_footprint_names_the_edited_projections(ask: Any) -> None:
    found = ask("footprint", "production")
    assert found["weights"] and all("c_proj" in w["parameter"] for w in found["weights"])
    assert found["slots"] == []


def test_locate_writes_a_page_with_its_figure(ask: Any, tmp_path: Path) -> None:
    found = ask("locate", "DirectX", "P178", "--answer", "Microsoft", "--samples", "2", "--out", str(tmp_path))
    assert len(found["effects"]["block"]) == len(found["tokens"])
    assert (tmp_path / "locate.svg").read_text().startswith("<svg")
    assert "Hase et al. (2023)" in (tmp_path / "locate.md").read_text()


def test_the_audit_of_the_night_holds(ask: Any) -> None:
    assert ask("audit", "--deep")["breaks"] == []


def test_separability_needs_no_fact_and_tells_every_layer_that_was_asked(ask: Any) -> None:
    found = ask("locate", "--separability", "--subjects", "8", "--layers", "0,1")
    assert [layer["layer"] for layer in found["layers"]] == [0, 1] and found["subjects"] == 8
    shares = [layer[kind]["separable"] for layer in found["layers"] for kind in ("key", "filter")]
    assert all(0 <= share <= 1 and share * 8 == round(share * 8) for share in shares)


def test_separability_says_how_far_it_is_where_there_is_no_terminal(ask: Any) -> None:
    """On standard error, from the start: the one document has standard output to itself."""
    asked = CliRunner().invoke(app, ["locate", "--separability", "--subjects", "8", "--layers", "0", "--json"])
    told = [line for line in asked.stderr.splitlines() if line.startswith("separability")]
    assert told[0] == "separability: begun" and told[-1].startswith("separability: 100% after ")
    assert json.loads(asked.stdout)["subjects"] == 8


def test_locate_without_a_fact_says_what_it_needs(ask: Any) -> None:
    refused = CliRunner().invoke(app, ["locate", "DirectX"])
    assert refused.exit_code == 1 and "SUBJECT and RELATION, or --separability" in " ".join(refused.output.split())


def test_more_subjects_than_the_warehouse_has_are_refused(ask: Any) -> None:
    refused = CliRunner().invoke(app, ["locate", "--separability", "--subjects", "99999"])
    assert refused.exit_code == 1 and "99999 were asked for" in " ".join(refused.output.split())
