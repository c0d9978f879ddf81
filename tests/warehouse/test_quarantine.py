"""The quarantine queue: what waits, who did what and why, and who joins the next night."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from warehouse.database.connection import Warehouse
from warehouse.errors import Conflict, NotFound
from warehouse.nights.intake import receive, record_verdicts, updates_of
from warehouse.nights.order import register
from warehouse.nights.quarantine import (
    actions,
    audit_problems,
    entries,
    entry_of,
    join_released,
    reject,
    release,
    update_of,
    waivers,
)
from warehouse.records import UpdateRecord, Verdict

WHEN = datetime(2026, 10, 2, 9, 30, tzinfo=UTC)
WHO: dict[str, Any] = {"reason": "seen on the ministry's page", "actor": "ada", "now": WHEN}


def update(record_id: str, night: str = "night-01", source: str = "recorded") -> UpdateRecord:
    return UpdateRecord(record_id=record_id, source=source, night=night, received_at=WHEN, raw=f'{{"id": "{record_id}"}}')


def held(record_id: str, rule: str = "low_trust") -> Verdict:
    return Verdict(record_id=record_id, verdict="quarantine", reason=rule, rule=rule, sentence=f"{record_id} waits.")


def put(wh: Warehouse, *record_ids: str, night: str = "night-01", source: str = "recorded", rule: str = "low_trust") -> None:
    receive(wh, [update(i, night, source) for i in record_ids])
    record_verdicts(wh, night, source, [held(i, rule) for i in record_ids], [])


@pytest.fixture
def wh() -> Iterator[Warehouse]:
    with Warehouse.open(":memory:") as opened:
        register(opened, ["night-00"])
        put(opened, "r1", "r2", "r3")
        yield opened


def test_quarantined_records_wait_in_order_of_arrival(wh: Warehouse) -> None:
    receive(wh, [update("good")])
    fine = held("good").model_copy(update={"verdict": "accept"})
    record_verdicts(wh, "night-01", "recorded", [fine], [])
    assert [(e.record_id, e.state, e.rule) for e in entries(wh)] == [(f"r{i}", "waiting", "low_trust") for i in (1, 2, 3)]


def test_an_act_is_kept_with_who_why_and_when(wh: Warehouse) -> None:
    action, fresh = release(wh, "r1", **WHO)
    assert fresh and (action.actor, action.reason, action.rule, action.acted_at) == (
        "ada", "seen on the ministry's page", "low_trust", WHEN,
    )  # fmt: skip
    assert actions(wh, "r1") == [action] and entry_of(wh, "r1").state == "released"


def test_acting_twice_is_once(wh: Warehouse) -> None:
    first, _ = release(wh, "r1", **WHO)
    again, fresh = release(wh, "r1", reason="another", actor="bob")
    assert (again, fresh) == (first, False) and len(actions(wh)) == 1


def test_what_was_decided_stands(wh: Warehouse) -> None:
    release(wh, "r1", **WHO)
    reject(wh, "r2", **WHO)
    with pytest.raises(Conflict, match="'r1' was released by ada on 2026-10-02 09:30"):
        reject(wh, "r1", reason="no", actor="bob")
    with pytest.raises(Conflict, match="'r2' was rejected by ada"):
        release(wh, "r2", reason="yes", actor="bob")


def test_a_released_record_joins_the_next_night_once(wh: Warehouse) -> None:
    release(wh, "r2", **WHO)
    assert [join_released(wh, "night-02") for _ in range(2)] == [1, 0]
    (joined,) = updates_of(wh, "night-02")
    assert (joined.record_id, joined.raw) == ("r2@night-02", update_of(wh, entry_of(wh, "r2")).raw)
    assert waivers(wh, "night-02") == {"r2@night-02": frozenset({"low_trust"})} and waivers(wh, "night-03") == {}
    assert entry_of(wh, "r2").state == "joined" and join_released(wh, "night-03") == 0


def test_neither_a_waiting_nor_a_rejected_record_joins(wh: Warehouse) -> None:
    reject(wh, "r1", **WHO)
    assert join_released(wh, "night-02") == 0 and updates_of(wh, "night-02") == []


def test_a_released_record_joins_the_tenth_night_after_the_ninth(wh: Warehouse) -> None:
    put(wh, "r9", night="night-9")
    release(wh, "r9", **WHO)
    assert join_released(wh, "night-10") == 1


def test_a_record_joins_no_night_before_or_at_its_own(wh: Warehouse) -> None:
    release(wh, "r1", **WHO)
    assert join_released(wh, "night-01") == 0 and join_released(wh, "night-00") == 0


def test_a_record_that_is_held_and_released_again_keeps_what_was_waived(wh: Warehouse) -> None:
    release(wh, "r1", **WHO)
    join_released(wh, "night-02")
    record_verdicts(wh, "night-02", "recorded", [held("r1@night-02", "logical_conflict")], [])
    release(wh, "r1@night-02", **WHO)
    join_released(wh, "night-03")
    assert waivers(wh, "night-03") == {"r1@night-02@night-03": frozenset({"low_trust", "logical_conflict"})}


def test_what_a_batch_needs_is_never_waived(wh: Warehouse) -> None:
    put(wh, "r9", rule="one_target_per_slot")
    release(wh, "r9", **WHO)
    join_released(wh, "night-02")
    assert waivers(wh, "night-02") == {"r9@night-02": frozenset()}


def test_a_join_that_fails_leaves_nothing_behind(wh: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    release(wh, "r1", **WHO)
    with monkeypatch.context() as patch:
        patch.setattr("warehouse.nights.quarantine.append_action", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            join_released(wh, "night-02")
    assert updates_of(wh, "night-02") == [] and join_released(wh, "night-02") == 1


def test_the_queue_is_there_after_a_restart(tmp_path: Path) -> None:
    with Warehouse.open(tmp_path / "w.duckdb") as wh:
        put(wh, "r1")
        release(wh, "r1", **WHO)
    with Warehouse.open(tmp_path / "w.duckdb") as wh:
        assert release(wh, "r1", **WHO)[1] is False and join_released(wh, "night-02") == 1


def test_one_id_in_two_sources_needs_the_source(wh: Warehouse) -> None:
    put(wh, "r1", source="file")
    with pytest.raises(Conflict, match="2 sources"):
        release(wh, "r1", **WHO)
    release(wh, "r1", source="file", **WHO)
    assert [e.state for e in entries(wh, record_id="r1")] == ["waiting", "released"]


def test_an_unknown_record_or_an_act_without_reason_is_refused(wh: Warehouse) -> None:
    with pytest.raises(NotFound, match="no quarantined record 'nobody'"):
        release(wh, "nobody", **WHO)
    with pytest.raises(ValueError, match="give a reason"):
        release(wh, "r1", reason=" ", actor="ada")
    with pytest.raises(ValueError, match="say who"):
        reject(wh, "r1", reason="x", actor="")


def test_a_trail_that_was_tampered_with_shows(wh: Warehouse) -> None:
    release(wh, "r1", **WHO)
    reject(wh, "r2", **WHO)
    assert audit_problems(wh) == []
    wh.execute("UPDATE quarantine_actions SET reason = 'none' WHERE record_id = 'r1'")
    assert audit_problems(wh) == ["quarantine action 1 (release r1) is not as it was written"]
    wh.execute("DELETE FROM quarantine_actions WHERE record_id = 'r1'")
    assert audit_problems(wh) == ["quarantine action 1 is missing; the next one is 2"]
