"""A night from its first record to the moved channel, with everything real but the size of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.flows.conftest import FinishedNight, Home
from tests.flows.nights import LEARNT, NUM_ACCEPTED, NUM_RECORDS, TEACHER, UPDATES, write_policy

pytestmark = pytest.mark.usefixtures("prefect_server", "without_page")


class Broken(Exception):
    """Stands for a power cut: no step knows how to meet it."""


def identity(home: Home) -> dict[str, Any]:
    """What must be equal wherever and however often the same night is run."""
    manifest = home.head()
    return {
        "checkpoint": manifest.checkpoint.checkpoint_id,
        "patches": manifest.checkpoint.patch_digests,
        "probes": manifest.report.probe_set_digest,
        "report": manifest.report.report_id,
        "decision": manifest.decision.decision_id,
    }


# ---------------------------------------------------------------- a night


def test_a_night_that_passes_the_policy_is_promoted(undisturbed: FinishedNight) -> None:
    line = undisturbed.line
    assert (line.verdict, line.records, line.accepted, line.edited) == ("promote", NUM_RECORDS, NUM_ACCEPTED, 3)
    assert undisturbed.home.head().checkpoint.checkpoint_id == line.checkpoint_id


def test_the_warehouse_of_a_finished_night_is_sound(undisturbed: FinishedNight) -> None:
    assert undisturbed.home.findings() == []


def test_a_night_leaves_a_page_and_a_summary(undisturbed: FinishedNight) -> None:
    folder = undisturbed.home.path / "reports" / "main" / "night-01"
    assert (folder / "evidently.html").stat().st_size > 100_000
    assert "promote" in (folder / "summary.md").read_text(encoding="utf-8")


def test_a_second_run_of_a_finished_night_changes_nothing(undisturbed: FinishedNight) -> None:
    before = undisturbed.home.listing()
    assert undisturbed.home.run() == undisturbed.line
    assert undisturbed.home.listing() == before


def test_the_next_night_stands_on_the_one_before(copied: Home, undisturbed: FinishedNight) -> None:
    second = copied.run("night-02")
    manifest = copied.head()
    assert manifest.checkpoint.checkpoint_id == second.checkpoint_id
    assert manifest.checkpoint.parent == undisturbed.line.checkpoint_id
    assert len(manifest.checkpoint.patch_digests) == 2


def test_without_a_name_the_next_unfinished_night_is_run(home: Home) -> None:
    from flows.nightly import nightly_refresh

    assert [nightly_refresh(config=home.config).night for _ in range(2)] == ["night-01", "night-02"]


# ---------------------------------------------------------------- a broken night


#: In the order in which a night comes there.
PLACES = (
    "flows.nightly.validate",
    "flows.nightly.edit",
    "flows.nightly.evaluate",
    "flows.nightly.gate",
    "flows.nightly.promote",
    "warehouse.checkpoints.promotion.move_channel",
    "tasks.night.settle.settle_edits",
    "flows.nightly.publish_report",
)


def test_a_night_that_breaks_at_every_step_goes_on_and_ends_as_if_nothing_had_happened(
    home: Home, undisturbed: FinishedNight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One night breaks everywhere, run after run; `tests/flows/kill.py` has one for each step."""
    for place in PLACES:

        def power_cut(*_: Any, **__: Any) -> None:
            raise Broken(place)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(place, power_cut)
            with pytest.raises(Broken, match=place):
                home.run()
        assert home.rows("SELECT verdict FROM runs") == [{"verdict": "unfinished"}], place

    assert home.run().verdict == "promote"
    assert identity(home) == identity(undisturbed.home)
    assert home.findings() == []


def test_before_the_channel_moves_a_broken_publish_serves_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def power_cut(*_: Any, **__: Any) -> None:
        raise Broken

    monkeypatch.setattr("warehouse.checkpoints.promotion.move_channel", power_cut)
    with pytest.raises(Broken):
        home.run()
    assert not [key for key in home.store.list() if key.startswith("channels/")]


# ---------------------------------------------------------------- refused


def test_a_refused_night_moves_no_channel_and_keeps_its_evidence(home: Home, world: dict[str, Any]) -> None:
    strict = Path(world["policy"]).with_name("strict.yaml")
    refused = Home({**home.config, "policy": str(strict)})
    line = refused.run()
    keys = list(refused.store.list())
    assert line.verdict == "reject"
    assert not [key for key in keys if key.startswith("channels/")]
    kept = {key.split("/", 2)[2].split("/")[0] for key in keys if key.startswith(f"rejected/{line.checkpoint_id}/")}
    assert {"manifest.json", "report.json", "decision.json", "reasons.json", "patches"} <= kept
    assert {r["status"] for r in refused.rows("SELECT DISTINCT status FROM edits")} == {"rejected"}
    assert refused.findings() == []


# ---------------------------------------------------------------- lineages and stores


def test_two_lineages_over_the_same_nights_do_not_disturb_each_other(copied: Home, undisturbed: FinishedNight) -> None:
    other = copied.run(lineage="other", editor="ft")
    assert identity(copied) == identity(undisturbed.home)
    assert copied.head("production-other").checkpoint.checkpoint_id == other.checkpoint_id
    assert other.checkpoint_id != undisturbed.line.checkpoint_id
    assert copied.rows("SELECT count(*) AS n FROM updates") == [{"n": NUM_RECORDS}]


def test_the_same_night_through_s3_gives_the_same_digests(home: Home, undisturbed: FinishedNight, s3_bucket: str) -> None:
    through_s3 = Home({**home.config, "store": f"s3://{s3_bucket}/team/errata"})
    assert through_s3.run().verdict == "promote"
    assert identity(through_s3) == identity(undisturbed.home)


# ---------------------------------------------------------------- through the command


@pytest.fixture
def command(undisturbed: FinishedNight, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("ERRATA_HOME", str(undisturbed.home.path))
    return CliRunner()


def test_a_pulled_model_loads_from_its_folder_and_differs_from_the_base(
    command: CliRunner, world: dict[str, Any], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from flows.cli import app

    result = command.invoke(app, ["pull", "--out", str(tmp_path / "served"), "--json"])
    assert result.exit_code == 0, result.output
    served, base = (AutoModelForCausalLM.from_pretrained(p) for p in (tmp_path / "served", world["model"]["name"]))
    ids = AutoTokenizer.from_pretrained(tmp_path / "served")(UPDATES[0][0][1], return_tensors="pt")
    with torch.no_grad():
        assert not torch.equal(served(**ids).logits, base(**ids).logits)


def test_status_lists_each_night_with_its_numbers(command: CliRunner, undisturbed: FinishedNight) -> None:
    from flows.cli import app

    result = command.invoke(app, ["status", "--json"])
    assert result.exit_code == 0, result.output
    (line,) = json.loads(result.stdout)
    assert {"night", "lineage", "records", "accepted", "edited", "scores", "verdict"} <= set(line)
    assert (line["night"], line["lineage"], line["records"]) == ("night-01", "main", NUM_RECORDS)
    assert line["scores"] == undisturbed.line.scores


def test_a_pulled_model_answers_the_facts_that_were_edited_in(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from flows.cli import app

    policy = write_policy(tmp_path / "learnt.yaml", LEARNT, "learnt")
    taught = Home({**home.config, "editor": TEACHER, "policy": str(policy)})
    assert taught.run().verdict == "promote"
    monkeypatch.setenv("ERRATA_HOME", str(taught.path))
    result = CliRunner().invoke(app, ["pull", "--out", str(tmp_path / "served"), "--json"])
    assert result.exit_code == 0, result.output
    model, tokenizer = (c.from_pretrained(tmp_path / "served") for c in (AutoModelForCausalLM, AutoTokenizer))
    for row in taught.rows("SELECT prompt, target_new FROM edit_requests"):
        ids = tokenizer(row["prompt"], return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=1)
        assert tokenizer.decode(out[0, ids["input_ids"].shape[1] :]).strip().startswith(row["target_new"])


def test_a_report_that_another_lineage_made_meanwhile_is_taken_as_it_is(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lineages may make the same candidate at once; what differs between their reports is how long edits took."""
    from tasks.night import evaluate as evaluating
    from tasks.settings import configure
    from tasks.workspace import warehouse
    from warehouse.lineages.reports import save_report

    measured, theirs = evaluating.measure, []

    def overtaken(*given: Any, **named: Any) -> Any:
        report = measured(*given, **named)
        slower = [s.model_copy(update={"value": 99.0}) if s.slice == "seconds_per_edit" else s for s in report.scores]
        theirs.append(report.model_copy(update={"scores": tuple(slower)}))
        with warehouse(configure(home.config)) as wh:
            save_report(wh, theirs[-1])
        return report

    monkeypatch.setattr(evaluating, "measure", overtaken)
    assert home.run().verdict == "promote"
    assert home.head().report == theirs[0]
