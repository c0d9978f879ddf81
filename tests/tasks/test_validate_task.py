"""Ingest and validate as tasks: kept as received, judged once, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.night.ingest import ingest
from tasks.night.validate import validate
from tasks.settings import Settings
from tasks.steps import only_by_chance
from tasks.workspace import warehouse
from tests.flows.nights import NUM_ACCEPTED, NUM_RECORDS, first_night, write_night
from warehouse.checkpoints.object_store import StoreUnavailable
from warehouse.database.connection import WarehouseBusy
from warehouse.errors import SourceError
from warehouse.nights.intake import requests_of, updates_of, verdicts_of


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    write_night(tmp_path / "nights", "night-01", [*first_night(), "{"])
    return Settings(home=tmp_path / "home", source={"kind": "recorded", "path": str(tmp_path / "nights")})


def test_records_are_kept_as_received_and_only_once(settings: Settings) -> None:
    assert [ingest.fn(settings, "night-01") for _ in range(2)] == [NUM_RECORDS + 1] * 2
    with warehouse(settings) as wh:
        assert [r.raw for r in updates_of(wh, "night-01")] == [*first_night(), "{"]


def test_every_record_has_a_verdict_and_the_accepted_ones_a_request(settings: Settings) -> None:
    ingest.fn(settings, "night-01")
    assert validate.fn(settings, "night-01") == {"supersede": NUM_ACCEPTED, "reject": 2}
    with warehouse(settings) as wh:
        verdicts, requests = verdicts_of(wh, "night-01"), requests_of(wh, "night-01")
    assert [v.request_id for v in verdicts if v.verdict == "supersede"] == [r.request_id for r in requests]
    assert all(v.sentence for v in verdicts)


def test_the_suite_of_the_night_is_written_beside_it(settings: Settings) -> None:
    ingest.fn(settings, "night-01")
    validate.fn(settings, "night-01")
    suite = json.loads((settings.work / "night-01" / "suite.json").read_text(encoding="utf-8"))
    assert suite["success"] is True


def test_a_night_is_judged_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest.fn(settings, "night-01")
    first = validate.fn(settings, "night-01")

    def again(*_: object, **__: object) -> None:
        raise AssertionError("judged a second time")

    monkeypatch.setattr("tasks.night.validate.validate_night", again)
    assert validate.fn(settings, "night-01") == first


def test_where_the_facts_cannot_be_written_neither_is_a_verdict(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    ingest.fn(settings, "night-01")
    with monkeypatch.context() as patch:
        patch.setattr("tasks.night.validate.apply_fact_changes", full_disk)
        with pytest.raises(OSError, match="no space"):
            validate.fn(settings, "night-01")
    with warehouse(settings) as wh:
        assert (verdicts_of(wh, "night-01"), requests_of(wh, "night-01")) == ([], [])
    assert validate.fn(settings, "night-01") == {"supersede": NUM_ACCEPTED, "reject": 2}


class Failed:
    """A task run's state that holds an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def result(self, raise_on_failure: bool) -> Exception:
        return self.error


@pytest.mark.parametrize("error", [WarehouseBusy("busy"), StoreUnavailable("gone"), ConnectionError()])
def test_what_can_pass_by_itself_is_tried_again(error: Exception) -> None:
    assert only_by_chance(None, None, Failed(error))


@pytest.mark.parametrize("error", [SourceError("empty"), ValueError("wrong"), AssertionError()])
def test_what_is_broken_is_not_tried_again(error: Exception) -> None:
    assert not only_by_chance(None, None, Failed(error))
