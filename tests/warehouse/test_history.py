"""The log, the difference of two checkpoints, and blame."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.warehouse.world import LINE, NIGHT, NOON, edit, request, update, verdict
from warehouse.database.connection import MEMORY, Warehouse
from warehouse.errors import NotFound
from warehouse.lineages.chain import add_checkpoint, move_head
from warehouse.lineages.edits import record_batches, record_edits, settle_edits, supersede
from warehouse.lineages.history import blame, difference, facts_in_force, log_lines
from warehouse.records import Checkpoint, EditBatch
from warehouse.world.facts import receive, record_verdicts

RAW = '{"op": "set_value", "revision": {"old": 7, "new": 8}}'


def point(name: str, parent: str | None, *patches: str) -> Checkpoint:
    return Checkpoint(checkpoint_id=name, parent=parent, base_model="tiny", base_revision="r", base_digest="b",
                      patch_digests=patches, created_at=NOON)  # fmt: skip


def night(wh: Warehouse, name: str, record: str, target: str, parent: str, verdict_of: str = "promote") -> None:
    """One night with one edit of the same slot."""
    asked = request(f"rq-{record}", target)
    receive(wh, [update(record, name, RAW)])
    record_verdicts(wh, name, "recorded", [verdict(record, asked.request_id)], [asked])
    record_batches(wh, LINE, name, "memit", [EditBatch(batch_id=f"b-{record}", requests=(asked,))], NOON)
    record_edits(wh, LINE, name, [edit(f"e-{record}", asked.request_id, f"p-{record}", f"b-{record}")])
    add_checkpoint(wh, LINE, name, point(f"c-{record}", parent, f"p-{record}"), verdict_of)  # pyright: ignore[reportArgumentType]
    status = "active" if verdict_of == "promote" else "rejected"
    settle_edits(wh, LINE, name, f"c-{record}", status=status, reason="")


@pytest.fixture
def wh() -> Iterator[Warehouse]:
    """base, then Oslo, then Bergen in its place; a rejected Paris beside them."""
    with Warehouse.open(MEMORY) as opened:
        add_checkpoint(opened, LINE, "", point("base", None), "promote")
        night(opened, NIGHT, "1", "Oslo", "base")
        night(opened, "night-02", "2", "Paris", "c-1", "reject")
        night(opened, "night-03", "3", "Bergen", "c-1")
        supersede(opened, LINE, ["e-1"], in_checkpoint="c-3", reason="newer")
        yield opened


def test_the_log_has_a_line_a_checkpoint_newest_first(wh: Warehouse) -> None:
    lines = log_lines(wh, LINE)
    assert [line.checkpoint_id for line in lines] == ["c-3", "c-2", "c-1", "base"]
    assert [line.off_chain for line in lines] == [False, True, False, False]
    assert lines[0].marks == ("production",)


def test_an_unknown_lineage_is_named(wh: Warehouse) -> None:
    with pytest.raises(NotFound, match="nobody"):
        log_lines(wh, "nobody")


def test_a_superseded_fact_is_in_force_where_its_successor_is_not(wh: Warehouse) -> None:
    assert [f.target_new for f in facts_in_force(wh, LINE, "c-1")] == ["Oslo"]
    assert [f.target_new for f in facts_in_force(wh, LINE, "c-3")] == ["Bergen"]


def test_two_checkpoints_differ_by_the_changed_answer(wh: Warehouse) -> None:
    found = difference(wh, LINE, "c-1", "c-3")
    assert [(f.before, f.after) for f in found.changed] == [("Oslo", "Bergen")]
    assert not found.added and not found.retracted


def test_the_way_back_to_the_base_retracts(wh: Warehouse) -> None:
    found = difference(wh, LINE, "c-3", "base")
    assert [(f.before, f.after) for f in found.retracted] == [("Bergen", None)]


def test_blame_names_the_update_its_revision_and_what_came_before(wh: Warehouse) -> None:
    found = blame(wh, LINE, "Ada", "P19")
    assert [(b.fact.target_new, b.in_force) for b in found] == [("Bergen", True), ("Paris", False), ("Oslo", False)]
    assert (found[0].records[0], found[0].revisions) == ("3", ("8",))


def test_blame_follows_a_rollback(wh: Warehouse) -> None:
    move_head(wh, LINE, "c-1", "a bad night")
    assert [b.fact.target_new for b in blame(wh, LINE, "Q1", "P19") if b.in_force] == ["Oslo"]


def test_an_answer_that_nobody_edited_is_the_base_models(wh: Warehouse) -> None:
    with pytest.raises(NotFound, match="base model's own"):
        blame(wh, LINE, "Ada", "P20")


@pytest.mark.parametrize("subject", ["Ada", "ada", " A\u200bda ", "Q1", "q1", "wd:Q1", "https://www.wikidata.org/wiki/Q1#P19"])
@pytest.mark.parametrize("relation", ["P19", "p19", "Property:P19", "place of birth", "birthplace"])
def test_blame_finds_a_slot_however_it_is_written(wh: Warehouse, subject: str, relation: str) -> None:
    row = {"cardinality": "single", "single_in_practice": True, "symmetric": False, "temporal": False}
    wh.append("properties", [{"pid": "P19", "label": "place of birth", **row}])
    assert {b.fact.target_new for b in blame(wh, LINE, subject, relation)} == {"Oslo", "Paris", "Bergen"}
