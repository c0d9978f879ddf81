"""The course of a night in the warehouse, without any flow around it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from checks.predictor import Answer, Question
from tasks.candidate import Candidate
from tasks.night.course import NOTHING_TO_EDIT, NightClosed, begin, finish_empty, next_night
from tasks.night.edit import choose_requests
from tasks.night.ingest import ingest, nights_of
from tasks.night.progress import artifact_key
from tasks.settings import Settings
from tasks.workspace import LineageBusy, lineage_lock, todays_night, warehouse
from tests.flows.nights import first_night, second_night, write_night
from tests.support import SIX_REQUESTS
from warehouse.errors import Conflict, NotFound
from warehouse.ingest.stream_tables import SOURCE
from warehouse.nights.intake import receive
from warehouse.nights.runs import run_of
from warehouse.records import UpdateRecord


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    nights = tmp_path / "nights"
    write_night(nights, "night-01", first_night())
    write_night(nights, "night-02", second_night())
    return Settings(home=tmp_path / "home", source={"kind": "recorded", "path": str(nights)})


def done(night: str) -> Candidate:
    """An edit step that found nothing to edit."""
    return Candidate(
        night=night, editor="memit", config_digest="c", parent=None, base_digest="b", parent_patches=(), new_patches=(),
        edited=(), skipped=(("r1", "no_op"),), right_after=(), edit_seconds=0.0, patch_bytes=0,
    )  # fmt: skip


def test_a_night_goes_only_forwards(settings: Settings) -> None:
    run = begin(settings, "night-01")
    run.reach("edited", edited=3)
    run.reach("received")
    with warehouse(settings) as wh:
        held = run_of(wh, "night-01", "main")
    assert held is not None and held.state == "edited"
    assert held.line.details["edited"] == 3


def test_a_broken_night_is_taken_up_with_the_seconds_it_had_spent(settings: Settings) -> None:
    first = begin(settings, "night-01")
    first.started -= 100
    first.reach("validated")
    assert begin(settings, "night-01").spent >= 100


def test_a_finished_night_is_closed_and_shows_its_line(settings: Settings) -> None:
    line = finish_empty(begin(settings, "night-01"), done("night-01"))
    assert (line.verdict, line.checkpoint_id) == (NOTHING_TO_EDIT, None)
    with pytest.raises(NightClosed) as closed:
        begin(settings, "night-01")
    assert closed.value.run == line


def test_a_night_begun_with_one_editor_is_not_finished_with_another(settings: Settings) -> None:
    other = settings.model_copy(update={"editor": settings.editor.model_copy(update={"name": "ft"})})
    begin(settings, "night-01")
    # Nothing is edited yet: the editor may have been refused, and another one takes the night over.
    begin(other, "night-01").reach("edited")
    with pytest.raises(Conflict, match="lineage of its own"):
        begin(settings, "night-01")


def test_a_broken_night_comes_before_the_next_one(settings: Settings) -> None:
    begin(settings, "night-01")
    assert next_night(settings) == "night-01"


def test_each_lineage_has_its_own_next_night(settings: Settings) -> None:
    finish_empty(begin(settings, "night-01"), done("night-01"))
    assert next_night(settings) == "night-02"
    assert next_night(settings.model_copy(update={"lineage": "other"})) == "night-01"


def test_after_the_last_night_there_is_none(settings: Settings) -> None:
    for night in ("night-01", "night-02"):
        finish_empty(begin(settings, night), done(night))
    with pytest.raises(NotFound, match="all 2 nights"):
        next_night(settings)


def test_a_held_lineage_is_not_entered(settings: Settings) -> None:
    with lineage_lock(settings), pytest.raises(LineageBusy, match="main"), lineage_lock(settings, wait_s=0.3):
        raise AssertionError("two runs are in one lineage")


def test_another_lineage_is_free_while_one_is_held(settings: Settings) -> None:
    with lineage_lock(settings), lineage_lock(settings.model_copy(update={"lineage": "other"}), wait_s=0):
        assert (settings.home / "locks" / "other.lock").exists()


def test_a_lineage_is_free_again_after_a_run_that_failed(settings: Settings) -> None:
    with pytest.raises(RuntimeError), lineage_lock(settings):
        raise RuntimeError
    with lineage_lock(settings, wait_s=0):
        assert (settings.home / "locks" / "main.lock").exists()


class Knows:
    """A model that answers some prompts rightly already."""

    def __init__(self, *prompts: str) -> None:
        self.prompts = prompts

    def score(self, questions: list[Question]) -> list[Answer]:
        return [
            Answer(q.prompt in self.prompts, token_accuracy=0.0, log_prob=-1.0, margin=0.0, argmax_text="") for q in questions
        ]


def test_requests_that_are_answered_or_only_add_a_value_are_left_alone() -> None:
    known, added, *others = SIX_REQUESTS
    chosen, skipped = choose_requests(Knows(known.prompt), list(SIX_REQUESTS), {added.request_id})  # type: ignore[arg-type]
    assert chosen == others
    assert skipped == [(known.request_id, "no_op"), (added.request_id, "additional_value")]


def test_nights_run_in_natural_order_and_one_that_came_earlier_runs_first(settings: Settings) -> None:
    for name in ("week-10", "week-9"):
        write_night(Path(settings.source.path), name, first_night())
    assert nights_of(settings) == ("night-01", "night-02", "week-9", "week-10")
    begin(settings, "week-10")
    write_night(Path(settings.source.path), "week-8", first_night())
    assert nights_of(settings)[-3:] == ("week-9", "week-10", "week-8")


def test_a_night_that_was_passed_over_comes_before_the_one_that_ran_and_may_follow_it_late(settings: Settings) -> None:
    begin(settings, "night-02")
    assert nights_of(settings) == ("night-01", "night-02")
    begin(settings, "night-01", late=True)
    assert nights_of(settings) == ("night-02", "night-01")


def test_a_finished_night_is_closed_however_late_it_is_asked_for(settings: Settings) -> None:
    finish_empty(begin(settings, "night-01"), done("night-01"))
    begin(settings, "night-02")
    with pytest.raises(NightClosed):
        begin(settings, "night-01", late=True)


@pytest.mark.parametrize("name", ["../night-01", "a/b", "", "night-01\n"])
def test_a_night_whose_name_is_a_path_is_not_begun(settings: Settings, name: str) -> None:
    with pytest.raises(ValueError, match="no name of a night"):
        begin(settings, name)


def test_a_file_and_the_stream_with_one_name_are_told_apart(settings: Settings) -> None:
    with warehouse(settings) as wh:
        receive(wh, [UpdateRecord(record_id="w1", source=SOURCE, night="night-01", received_at=None, raw="{}")])
    with pytest.raises(Conflict, match="give the file another name"):
        ingest.fn(settings, "night-01")
    (Path(settings.source.path) / "night-01.events.jsonl").rename(Path(settings.source.path) / "night-01b.events.jsonl")
    assert ingest.fn(settings, "night-01") == 1
    assert nights_of(settings) == ("night-01", "night-01b", "night-02")


def test_the_day_has_one_name_for_the_stream_and_for_dumps(settings: Settings) -> None:
    assert todays_night(settings) == f"night-{datetime.now(UTC):%Y-%m-%d}"


@pytest.mark.parametrize("night", ["Week 9", "2026.11.28", "nuit_é"])
def test_any_name_of_a_night_has_a_key_that_prefect_takes(night: str) -> None:
    assert re.fullmatch("[a-z0-9-]+", artifact_key(f"main-{night}"))
