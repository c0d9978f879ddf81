"""A released record joins the next night and is judged again; a rejected one never comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from checks.errors import ValidatorBroke
from tasks.night.ingest import ingest
from tasks.night.validate import validate
from tasks.settings import Settings, SourceSettings
from tasks.workspace import warehouse
from tests.flows.nights import LATER, UPDATES, event, write_night
from warehouse.nights.intake import requests_of, verdicts_of
from warehouse.nights.quarantine import entries, reject, release

ACT: dict[str, Any] = {"reason": "the source is right", "actor": "ada"}


def doubtful(number: int, night: int) -> dict[str, Any]:
    """A replacement by a new account, unpatrolled and without reference."""
    return event(number, night, *UPDATES[number - 1]) | {"references": 0, "editor": {"class": "newcomer", "patrolled": False}}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    first = [doubtful(1, 1), doubtful(2, 1), event(3, 1, *UPDATES[2])]
    write_night(tmp_path / "nights", "night-01", [json.dumps(e) for e in first])
    write_night(tmp_path / "nights", "night-02", [json.dumps(event(9, 2, *LATER[0]))])
    return Settings(home=tmp_path / "home", source=SourceSettings(path=str(tmp_path / "nights")))


def judge(settings: Settings, night: str) -> dict[str, tuple[str, str]]:
    ingest.fn(settings, night)
    validate.fn(settings, night)
    with warehouse(settings) as wh:
        return {v.record_id: (v.verdict, v.reason) for v in verdicts_of(wh, night)}


def test_a_released_record_is_judged_and_edited_in_the_next_night(settings: Settings) -> None:
    assert judge(settings, "night-01")["t01-001"] == ("quarantine", "low_trust")
    with warehouse(settings) as wh:
        release(wh, "t01-001", **ACT)
        reject(wh, "t01-002", **ACT)
    second = judge(settings, "night-02")
    assert second["t01-001@night-02"] == ("supersede", "newer_referenced_value") and len(second) == 2
    with warehouse(settings) as wh:
        assert len(requests_of(wh, "night-02")) == 2
        assert [e.state for e in entries(wh, night="night-01")] == ["joined", "rejected"]


def test_a_night_that_is_run_again_adds_nothing(settings: Settings) -> None:
    judge(settings, "night-01")
    with warehouse(settings) as wh:
        release(wh, "t01-001", **ACT)
    first = judge(settings, "night-02")
    with warehouse(settings) as wh:
        release(wh, "t01-002", **ACT)
    assert judge(settings, "night-02") == first


def test_a_night_that_broke_between_joining_and_judging_goes_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    judge(settings, "night-01")
    with warehouse(settings) as wh:
        release(wh, "t01-001", **ACT)
    with monkeypatch.context() as patch:
        patch.setattr("tasks.night.validate.record_verdicts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            judge(settings, "night-02")
    assert judge(settings, "night-02")["t01-001@night-02"][0] == "supersede"


def test_a_validator_that_broke_stops_the_night_and_writes_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest.fn(settings, "night-01")

    def broken(*_: object, **__: object) -> None:
        raise ValidatorBroke("expectation could not be computed")

    with monkeypatch.context() as patch:
        patch.setattr("tasks.night.validate.validate_night", broken)
        with pytest.raises(ValidatorBroke):
            validate.fn(settings, "night-01")
    with warehouse(settings) as wh:
        assert (verdicts_of(wh, "night-01"), requests_of(wh, "night-01")) == ([], [])
        assert wh.scalar("SELECT count(*) FROM facts WHERE known_from_night = 'night-01'") == 0


def test_a_users_property_table_is_in_force(settings: Settings, tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_text(f"pid,one_of\n{UPDATES[2][1][0]},Q2283\n")
    strict = settings.model_copy(update={"properties": str(own)})
    assert judge(strict, "night-01")["t01-003"] == ("reject", "type_violation")
