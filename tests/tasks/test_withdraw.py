"""Nights of requests that go wrong: what blocks one record blocks no night, and a night can be taken back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks.night.ingest import ingest
from tasks.night.validate import validate
from tasks.recheck.audit import audit
from tasks.settings import Settings, SourceSettings
from tasks.takeback.withdraw import withdraw
from tasks.workspace import warehouse
from warehouse.errors import Conflict, NotFound
from warehouse.lineages.audit import entries
from warehouse.nights.intake import requests_of, updates_of, verdicts_of
from warehouse.nights.quarantine import release
from warehouse.nights.runs import advance_run, begin_run, run_of
from warehouse.upkeep.integrity import check

ONE = {"prompt": "Michel Brault was born in", "subject": "Michel Brault", "relation": "P19", "target_new": "Paris"}
TWO = {"prompt": "Yeung Sum was born in", "subject": "Yeung Sum", "relation": "P19", "target_new": "Lima"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", source=SourceSettings(kind="requests", path=str(tmp_path / "updates")), actor="ada")


def send(settings: Settings, night: str, *requests: dict[str, Any]) -> None:
    path = Path(settings.source.path) / f"{night}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(request) + "\n" for request in requests), encoding="utf-8")


def judge(settings: Settings, night: str) -> dict[str, tuple[str, str]]:
    ingest.fn(settings, night)
    validate.fn(settings, night)
    with warehouse(settings) as wh:
        return {v.record_id: (v.verdict, v.reason) for v in verdicts_of(wh, night)}


def facts(settings: Settings) -> list[dict[str, Any]]:
    with warehouse(settings) as wh:
        return wh.rows("SELECT * FROM facts WHERE subject IN ('Michel Brault', 'Yeung Sum') ORDER BY fact_id")


def test_a_minimal_request_is_given_other_wordings_and_the_ids_that_it_means(settings: Settings) -> None:
    send(settings, "n1", ONE | {"target_new": "lima"})
    assert list(judge(settings, "n1").values()) == [("accept", "requested_fact")]
    with warehouse(settings) as wh:
        (request,) = requests_of(wh, "n1")
    assert (request.subject_id, request.target_new_id) == ("Q1030862", "Q983974")
    assert len(request.rephrases) >= 2 and request.prompt not in request.rephrases
    assert all("Michel Brault" in prompt for prompt in request.rephrases)


def test_a_request_id_that_came_twice_holds_its_two_records_and_no_night(settings: Settings) -> None:
    send(settings, "n1", ONE | {"request_id": "a"}, TWO | {"request_id": "a"}, TWO | {"request_id": "b"})
    found = judge(settings, "n1")
    assert [reason for _, reason in found.values()] == ["record_id_reused", "record_id_reused", "requested_fact"]


def test_a_request_id_of_an_earlier_night_holds_its_record_alone(settings: Settings) -> None:
    send(settings, "n1", ONE | {"request_id": "a"})
    judge(settings, "n1")
    send(settings, "n2", TWO | {"request_id": "a"}, TWO | {"request_id": "b", "target_new": "Oslo"})
    found = judge(settings, "n2")
    assert sorted(reason for _, reason in found.values()) == ["record_id_reused", "requested_fact"]
    send(settings, "n3", {"request_id": "a", **ONE})
    assert list(judge(settings, "n3").values()) == [("merge_duplicate", "redelivered_event")]


def test_a_withdrawn_night_leaves_nothing_but_its_entry_in_the_trail(settings: Settings) -> None:
    send(settings, "n1", ONE, TWO | {"subject": "Nobody", "prompt": "Nobody was born in"}, {"prompt": "x"})
    before = facts(settings)
    judge(settings, "n1")
    with warehouse(settings) as wh:
        begin_run(wh, "n1", "main", run_id="r", editor="ledger")
    assert facts(settings) != before
    was = withdraw(settings, "n1", "the file was a draft")
    assert (was["records"]["rows"], was["verdicts"]["rows"], was["requests"]["rows"]) == (3, 3, 2)
    assert facts(settings) == before
    with warehouse(settings) as wh:
        assert (updates_of(wh, "n1"), verdicts_of(wh, "n1"), requests_of(wh, "n1")) == ([], [], [])
        assert run_of(wh, "n1", "main") is None and check(wh) == []
        entry = entries(wh, "kind = 'withdrawal'")[-1]
    assert (entry.subject, entry.reason, entry.actor) == ("n1", "the file was a draft", "ada")


def test_a_corrected_file_is_read_again_and_the_trail_vouches_for_it(settings: Settings) -> None:
    for attempt in range(2):
        send(settings, "n1", ONE | {"request_id": "a"}, TWO | {"request_id": "b", "target_new": "#REF!"})
        assert judge(settings, "n1") == {"a": ("accept", "requested_fact"), "b": ("reject", "malformed_label")}
        withdraw(settings, "n1", f"attempt {attempt}")
    send(settings, "n1", ONE | {"request_id": "a"}, TWO | {"request_id": "b"})
    assert {verdict for verdict, _ in judge(settings, "n1").values()} == {"accept"}
    with warehouse(settings) as wh:
        kinds = [e.kind for e in entries(wh)]
        assert kinds == ["verdicts", "withdrawal", "verdicts", "withdrawal", "verdicts"]
        wh.execute("UPDATE verdicts SET sentence = 'changed' WHERE record_id = 'a'")
    found = audit(settings).breaks
    assert [b.what for b in found if "verdicts" in b.what] == ["verdicts of night n1"]


def test_a_mended_file_of_a_judged_night_names_the_way_out(settings: Settings) -> None:
    send(settings, "n1", ONE | {"request_id": "a", "target_new": "nan"})
    judge(settings, "n1")
    send(settings, "n1", ONE | {"request_id": "a"})
    with pytest.raises(Conflict, match="errata night withdraw n1 --reason"):
        ingest.fn(settings, "n1")
    with warehouse(settings) as wh:
        assert len(updates_of(wh, "n1")) == 1
    withdraw(settings, "n1", "mended")
    assert judge(settings, "n1") == {"a": ("accept", "requested_fact")}


def test_what_was_built_on_is_not_withdrawn(settings: Settings) -> None:
    with pytest.raises(NotFound, match="no night 'n1'"):
        withdraw(settings, "n1", "why")
    send(settings, "n1", ONE | {"request_id": "a"}, TWO | {"request_id": "b"}, TWO | {"request_id": "c", "target_new": "Oslo"})
    send(settings, "n2", TWO)
    judge(settings, "n1")
    judge(settings, "n2")
    with pytest.raises(ValueError, match="give a reason"):
        withdraw(settings, "n1", " ")
    with pytest.raises(Conflict, match="withdraw night n2 first"):
        withdraw(settings, "n1", "why")
    withdraw(settings, "n2", "why")
    with warehouse(settings) as wh:
        release(wh, "b", reason="I know", actor="ada")
    with pytest.raises(Conflict, match="'b' of n1 was acted on"):
        withdraw(settings, "n1", "why")


def test_a_night_that_was_decided_is_not_withdrawn(settings: Settings) -> None:
    send(settings, "n1", ONE)
    judge(settings, "n1")
    with warehouse(settings) as wh:
        begin_run(wh, "n1", "main", run_id="r", editor="ledger")
        advance_run(wh, "n1", "main", "decided")
    with pytest.raises(Conflict, match="errata revert"):
        withdraw(settings, "n1", "why")


def test_a_record_is_judged_by_the_source_that_received_it(settings: Settings) -> None:
    send(settings, "n1", ONE)
    ingest.fn(settings, "n1")
    validate.fn(settings.model_copy(update={"source": settings.source.model_copy(update={"kind": "knowedit"})}), "n1")
    with warehouse(settings) as wh:
        assert [(v.verdict, v.reason) for v in verdicts_of(wh, "n1")] == [("accept", "requested_fact")]


def test_one_wrong_clock_is_that_records_fault_and_no_others(settings: Settings) -> None:
    event: dict[str, Any] = {
        "op": "add_statement", "subject": {"id": "Q1", "label": "Ada Byron"}, "property": {"id": "P20", "label": "x"},
        "old_value": None, "new_value": {"type": "item", "id": "Q84", "label": "London"}, "references": 1,
        "qualifiers": {"P580": ["+2090-01-01T00:00:00Z"]}, "received_at": "2026-10-03T22:00:00Z", "record_id": "e1",
    }  # fmt: skip
    other = event | {"record_id": "e2", "subject": {"id": "Q2", "label": "Bo Dahl"}, "qualifiers": {},
                     "received_at": "2099-01-01T00:00:00Z"}  # fmt: skip
    edge = other | {"record_id": "e3", "received_at": "9999-12-31T23:59:59-05:00"}
    folder = Path(settings.source.path)
    folder.mkdir(parents=True)
    (folder / "night-03.events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in (event, other, edge)))
    recorded = settings.model_copy(update={"source": settings.source.model_copy(update={"kind": "recorded"})})
    assert judge(recorded, "night-03") == {
        "e1": ("quarantine", "not_yet_valid"), "e2": ("quarantine", "implausible_time"), "e3": ("reject", "malformed_record"),
    }  # fmt: skip


def test_dates_at_the_ends_of_the_calendar_are_kept(settings: Settings) -> None:
    times = ("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z")
    send(settings, "n1", *(ONE | {"received_at": time} for time in times), TWO)
    verdicts = judge(settings, "n1")
    assert [v for v, _ in verdicts.values()] == ["reject", "reject", "quarantine", "quarantine", "accept"]
    with warehouse(settings) as wh:
        kept = [r.received_at for r in updates_of(wh, "n1")]
    assert kept[:2] == [None, None] and kept[2] == datetime(1, 1, 1, tzinfo=UTC)
