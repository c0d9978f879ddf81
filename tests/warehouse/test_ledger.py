"""The ledger, the lineages and the runs: which edits are in force, and how far a night has come."""

from __future__ import annotations

import pytest

from tests.warehouse.world import LINE, NIGHT, NOON, checkpoint, edit, full_night, intake, night_run
from warehouse.database.connection import Warehouse
from warehouse.errors import Conflict, IntegrityError, NotFound
from warehouse.lineages.chain import (
    add_checkpoint,
    ancestor_ids,
    ancestors,
    checkpoints,
    head,
    lineage_view,
    lineages,
    move_head,
)
from warehouse.lineages.chain import checkpoint as checkpoint_of
from warehouse.lineages.edits import (
    PatchRow,
    active_edits,
    batches_of,
    edits_of,
    patch,
    record_batches,
    record_edits,
    save_patches,
    settle_edits,
    supersede,
)
from warehouse.nights.order import register
from warehouse.nights.runs import RunStateName, advance_run, begin_run, run_of, runs, save_run
from warehouse.records import EditBatch


@pytest.fixture
def wh():
    with Warehouse.open(":memory:") as opened:
        yield opened


@pytest.fixture
def chain(wh: Warehouse) -> Warehouse:
    """cp-0 (base), cp-1 with edit-1, cp-2 with edit-2 on the same request's subject; head cp-2."""
    intake(wh, "a", "b")
    add_checkpoint(wh, LINE, "", checkpoint("cp-0"), "promote")
    add_checkpoint(wh, LINE, "night-01", checkpoint("cp-1", "cp-0", ("patch-1",)), "promote")
    record_edits(wh, LINE, "night-01", [edit("edit-1", "req-a")], checkpoint_id="cp-1")
    add_checkpoint(wh, LINE, "night-02", checkpoint("cp-2", "cp-1", ("patch-1", "patch-2")), "promote")
    record_edits(wh, LINE, "night-02", [edit("edit-2", "req-b", "patch-2")], checkpoint_id="cp-2")
    return wh


def in_force(wh: Warehouse, lineage: str = LINE) -> list[str]:
    return [edit.edit_id for edit, _ in active_edits(wh, lineage)]


# ---------------------------------------------------------------- edits in force


def test_active_edits_come_in_order_with_their_requests(chain: Warehouse) -> None:
    assert [(e.edit_id, r.request_id) for e, r in active_edits(chain, LINE)] == [
        ("edit-1", "req-a"),
        ("edit-2", "req-b"),
    ]
    assert active_edits(chain, LINE)[0][0] == edit("edit-1", "req-a")


def test_an_edit_of_a_rejected_or_held_candidate_is_not_in_force(chain: Warehouse) -> None:
    for name, outcome in (("cp-r", "reject"), ("cp-h", "hold")):
        add_checkpoint(chain, LINE, "night-03", checkpoint(name, "cp-2", ("p",)), outcome)
        record_edits(chain, LINE, "night-03", [edit(f"edit-{name}", "req-a")], checkpoint_id=name)
    assert in_force(chain) == ["edit-1", "edit-2"]


def test_an_edit_is_in_force_from_the_promotion_of_its_checkpoint(chain: Warehouse) -> None:
    record_edits(chain, LINE, "night-03", [edit("edit-3", "req-a")])
    assert in_force(chain) == ["edit-1", "edit-2"]
    assert settle_edits(chain, LINE, "night-03", "cp-3", status="active") == 1
    add_checkpoint(chain, LINE, "night-03", checkpoint("cp-3", "cp-2", ("p",)), "promote")
    assert in_force(chain) == ["edit-1", "edit-2", "edit-3"]


def test_a_superseded_edit_leaves_and_a_rollback_brings_it_back(chain: Warehouse) -> None:
    assert supersede(chain, LINE, ["edit-1"], in_checkpoint="cp-2", reason="moved again") == 1
    assert in_force(chain) == ["edit-2"]
    move_head(chain, LINE, "cp-1", "bad answers")
    assert in_force(chain) == ["edit-1"]
    move_head(chain, LINE, "cp-2", "it was fine")
    assert in_force(chain) == ["edit-2"]


def test_superseding_in_a_candidate_takes_effect_with_its_promotion(chain: Warehouse) -> None:
    supersede(chain, LINE, ["edit-1"], in_checkpoint="cp-3", reason="moved again")
    assert in_force(chain) == ["edit-1", "edit-2"]
    add_checkpoint(chain, LINE, "night-03", checkpoint("cp-3", "cp-2", ("p",)), "promote")
    assert in_force(chain) == ["edit-2"]


def test_an_edit_superseded_already_keeps_its_first_reason(chain: Warehouse) -> None:
    supersede(chain, LINE, ["edit-1"], in_checkpoint="cp-2", reason="first")
    assert supersede(chain, LINE, ["edit-1"], in_checkpoint="cp-9", reason="second") == 0
    assert [line.reason for line in edits_of(chain, LINE, "night-01")] == ["first"]


def test_superseding_an_unknown_edit_names_it(chain: Warehouse) -> None:
    with pytest.raises(NotFound, match="'edit-9'"):
        supersede(chain, LINE, ["edit-1", "edit-9"], in_checkpoint="cp-2", reason="x")
    assert in_force(chain) == ["edit-1", "edit-2"]


def test_lineages_do_not_see_each_others_edits(chain: Warehouse) -> None:
    add_checkpoint(chain, "ft", "", checkpoint("cp-0"), "promote")
    record_edits(chain, "ft", "night-01", [edit("edit-1", "req-a")])
    assert in_force(chain, "ft") == []
    assert in_force(chain, "no such lineage") == []
    assert supersede(chain, "ft", ["edit-1"], in_checkpoint="cp-0", reason="x") == 1
    assert in_force(chain) == ["edit-1", "edit-2"]


def test_recording_edits_again_adds_nothing(chain: Warehouse) -> None:
    assert record_edits(chain, LINE, "night-01", [edit("edit-1", "req-a"), edit("edit-3", "req-b")]) == 1
    assert [line.edit.edit_id for line in edits_of(chain, LINE)] == ["edit-1", "edit-2", "edit-3"]


def test_an_edit_id_cannot_stand_for_another_patch(chain: Warehouse) -> None:
    with pytest.raises(Conflict, match="'edit-1'"):
        record_edits(chain, LINE, "night-01", [edit("edit-1", "req-a", "patch-9")])


def test_an_edit_of_an_unknown_request_is_refused(chain: Warehouse) -> None:
    with pytest.raises(NotFound, match="'req-x'"):
        record_edits(chain, LINE, "night-01", [edit("edit-9", "req-x")])


def test_skipped_edits_stay_in_the_ledger_with_their_reason(chain: Warehouse) -> None:
    record_edits(chain, LINE, "night-03", [edit("edit-3", "req-a", "")], status="skipped", reason="subject not in prompt")
    settle_edits(chain, LINE, "night-03", "cp-2", status="active")
    (line,) = edits_of(chain, LINE, "night-03")
    assert (line.status, line.reason, line.checkpoint_id) == ("skipped", "subject not in prompt", None)
    assert in_force(chain) == ["edit-1", "edit-2"]


def test_settling_named_edits_leaves_the_others_alone(chain: Warehouse) -> None:
    record_edits(chain, LINE, "night-03", [edit("edit-3", "req-a"), edit("edit-4", "req-b")])
    assert settle_edits(chain, LINE, "night-03", "cp-3", status="rejected", reason="DD", edit_ids=["edit-4"]) == 1
    assert [(line.status, line.checkpoint_id) for line in edits_of(chain, LINE, "night-03")] == [
        ("active", None), ("rejected", "cp-3"),
    ]  # fmt: skip


# ---------------------------------------------------------------- batches and patches


def test_batches_come_back_with_their_requests_in_order(wh: Warehouse) -> None:
    requests = intake(wh, "b", "a")
    batch = EditBatch(batch_id="x", requests=tuple(requests))
    assert record_batches(wh, LINE, NIGHT, "memit", [batch]) == 1
    assert record_batches(wh, LINE, NIGHT, "memit", [batch]) == 0
    assert batches_of(wh, LINE, NIGHT) == [batch]
    with pytest.raises(Conflict, match="'x'"):
        record_batches(wh, LINE, NIGHT, "memit", [EditBatch(batch_id="x", requests=tuple(requests[:1]))])


def test_a_patch_row_comes_back_equal(wh: Warehouse) -> None:
    row = PatchRow(patch_digest="p", kind="weight", editor="memit", bytes=3, meta={"layers": [3, 4], "ridge": 0.1})
    assert (save_patches(wh, [row]), save_patches(wh, [row])) == (1, 0)
    assert patch(wh, "p") == row
    with pytest.raises(NotFound, match="no patch q"):
        patch(wh, "q")


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_comes_back_equal(chain: Warehouse) -> None:
    assert checkpoint_of(chain, "cp-2") == checkpoint("cp-2", "cp-1", ("patch-1", "patch-2"))
    with pytest.raises(NotFound, match="cp-9"):
        checkpoint_of(chain, "cp-9")


def test_only_a_promoted_checkpoint_becomes_the_head(chain: Warehouse) -> None:
    assert head(chain, "new") is None
    add_checkpoint(chain, LINE, "night-03", checkpoint("cp-3", "cp-2"), "reject")
    newest = head(chain, LINE)
    assert newest is not None
    assert newest.checkpoint_id == "cp-2"
    assert [row.checkpoint.checkpoint_id for row in checkpoints(chain, LINE, "reject")] == ["cp-3"]


def test_adding_a_checkpoint_again_changes_nothing(chain: Warehouse) -> None:
    assert not add_checkpoint(chain, LINE, "night-01", checkpoint("cp-1", "cp-0", ("patch-1",)), "promote")
    newest = head(chain, LINE)
    assert newest is not None
    assert newest.checkpoint_id == "cp-2"


def test_a_verdict_is_final_but_a_hold_can_be_settled(chain: Warehouse) -> None:
    held = checkpoint("cp-3", "cp-2", ("p",))
    add_checkpoint(chain, LINE, "night-03", held, "hold")
    assert add_checkpoint(chain, LINE, "night-03", held, "promote", "manifest")
    assert head(chain, LINE) == held
    with pytest.raises(Conflict, match="promote already"):
        add_checkpoint(chain, LINE, "night-03", held, "reject")


def test_one_checkpoint_id_cannot_have_two_contents(chain: Warehouse) -> None:
    with pytest.raises(Conflict, match="another parent"):
        add_checkpoint(chain, LINE, "night-01", checkpoint("cp-1", "cp-0", ("other",)), "promote")


def test_a_checkpoint_needs_its_parent_in_the_lineage(chain: Warehouse) -> None:
    with pytest.raises(NotFound, match="'ft'"):
        add_checkpoint(chain, "ft", "night-01", checkpoint("cp-1", "cp-0"), "promote")


def test_a_second_writer_on_an_old_head_is_refused(chain: Warehouse) -> None:
    with pytest.raises(Conflict, match="start from the new head"):
        add_checkpoint(chain, LINE, "night-03", checkpoint("cp-3", "cp-1"), "promote", expected_head="cp-1")
    assert add_checkpoint(chain, LINE, "night-03", checkpoint("cp-3", "cp-2"), "promote", expected_head="cp-2")


def test_ancestors_run_from_the_checkpoint_to_the_base(chain: Warehouse) -> None:
    assert [c.checkpoint_id for c in ancestors(chain, LINE, "cp-2")] == ["cp-2", "cp-1", "cp-0"]
    with pytest.raises(NotFound, match="cp-9"):
        ancestors(chain, LINE, "cp-9")


def test_a_circle_of_parents_is_an_error_and_no_endless_walk(chain: Warehouse) -> None:
    chain.execute("UPDATE checkpoints SET parent = 'cp-2' WHERE checkpoint_id = 'cp-0'")
    with pytest.raises(IntegrityError, match="circle"):
        ancestor_ids(chain, LINE, "cp-2")


def test_the_head_moves_back_only_to_a_promoted_checkpoint(chain: Warehouse) -> None:
    add_checkpoint(chain, LINE, "night-03", checkpoint("cp-3", "cp-2"), "reject")
    with pytest.raises(Conflict, match="reject"):
        move_head(chain, LINE, "cp-3", "x")
    with pytest.raises(NotFound, match="cp-9"):
        move_head(chain, LINE, "cp-9", "x")
    move_head(chain, LINE, "cp-0", "start over")
    assert chain.rows("SELECT checkpoint_id, reason FROM heads WHERE lineage = ? ORDER BY seq DESC LIMIT 1", [LINE]) == [
        {"checkpoint_id": "cp-0", "reason": "start over"}
    ]


def test_the_view_of_a_lineage_shows_edits_report_and_decision_of_each_step(wh: Warehouse) -> None:
    full_night(wh)
    view = lineage_view(wh, LINE)
    assert [step.row.checkpoint.checkpoint_id for step in view.steps] == ["cp-0", "cp-1"]
    base, promoted = view.steps
    assert (base.edits, base.report, base.decision) == ((), None, None)
    assert promoted.edits == (edit("edit-1", "req-a"),)
    assert promoted.report is not None
    assert promoted.report.after == "cp-1"
    assert promoted.decision is not None
    assert promoted.decision.verdict == "promote"
    with pytest.raises(NotFound, match="lineages: memit"):
        lineage_view(wh, "ft")


# ---------------------------------------------------------------- runs


def test_a_run_goes_from_received_to_published(wh: Warehouse) -> None:
    begun = begin_run(wh, NIGHT, LINE, run_id="run-1", editor="memit", started_at=NOON)
    assert (begun.state, begun.line.verdict, begun.has_reached("validated")) == ("received", "unfinished", False)
    advanced = advance_run(wh, NIGHT, LINE, "edited", patches=["p"])
    assert advanced.has_reached("validated")
    assert save_run(wh, night_run(details={"note": "é"}), finished_at=NOON).finished_at == NOON
    assert runs(wh) == [night_run(details={"note": "é", "patches": ["p"]})]


def test_a_broken_run_is_found_again_where_it_stopped(wh: Warehouse) -> None:
    begin_run(wh, NIGHT, LINE, run_id="run-1", editor="memit")
    advance_run(wh, NIGHT, LINE, "validated")
    again = begin_run(wh, NIGHT, LINE, run_id="run-2", editor="memit")
    assert (again.run_id, again.state) == ("run-1", "validated")


def test_a_run_cannot_go_back_change_its_editor_or_start_in_the_middle(wh: Warehouse) -> None:
    with pytest.raises(NotFound, match="begin_run"):
        advance_run(wh, NIGHT, LINE, "edited")
    begin_run(wh, NIGHT, LINE, run_id="run-1", editor="memit")
    advance_run(wh, NIGHT, LINE, "decided")
    with pytest.raises(Conflict, match="decided already"):
        advance_run(wh, NIGHT, LINE, "edited")
    with pytest.raises(Conflict, match="begun with memit, not ft"):
        begin_run(wh, NIGHT, LINE, run_id="run-2", editor="ft")


@pytest.mark.parametrize("state", ["received", "validated"])
def test_a_night_that_has_edited_nothing_goes_on_with_another_editor(wh: Warehouse, state: RunStateName) -> None:
    """Begun with an editor that has no preset for the model, it was bound to that one for good."""
    begin_run(wh, NIGHT, LINE, run_id="run-1", editor="ledger")
    advance_run(wh, NIGHT, LINE, state)
    again = begin_run(wh, NIGHT, LINE, run_id="run-2", editor="memit")
    assert (again.run_id, again.state, again.line.editor) == ("run-1", state, "memit")
    assert save_run(wh, night_run(editor="memit"), finished_at=NOON).line.editor == "memit"


def test_the_refusal_of_another_editor_names_the_commands_that_go_on(wh: Warehouse) -> None:
    begin_run(wh, NIGHT, LINE, run_id="run-1", editor="memit")
    advance_run(wh, NIGHT, LINE, "edited")
    with pytest.raises(Conflict, match=f"errata refresh --night {NIGHT} --lineage {LINE} --editor memit.*--editor ft"):
        begin_run(wh, NIGHT, LINE, run_id="run-2", editor="ft")


def test_runs_are_listed_by_lineage_and_night(wh: Warehouse) -> None:
    register(wh, ["night-02", "night-01"])
    for lineage, night in (("memit", "night-02"), ("ft", "night-01"), ("memit", "night-01")):
        begin_run(wh, night, lineage, run_id=f"{lineage}-{night}", editor=lineage)
    assert [(r.lineage, r.night) for r in runs(wh)] == [
        ("ft", "night-01"), ("memit", "night-01"), ("memit", "night-02"),
    ]  # fmt: skip
    assert [r.night for r in runs(wh, "ft")] == ["night-01"]
    assert lineages(wh) == ["ft", "memit"]
    assert run_of(wh, "night-09", "ft") is None
