"""Four nights of the ledger editor: whatever is superseded, erased, reverted or rolled back, the edits in force decide."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from editors.model import EditableModel
from editors.patches.slots import SlotBook
from editors.session import batch_of
from tasks.inspecting.footprint import edit_footprint
from tasks.recheck.audit import audit
from tasks.serving.models import at_checkpoint, base_model
from tasks.serving.prepare import editor_of, preparation_of
from tasks.settings import configure
from tasks.takeback.rollback import restore
from tasks.workspace import warehouse
from tests.flows.conftest import Home, bare, begun, revert_edits
from tests.flows.nights import LATER, UPDATES, event, write_night
from tests.machines import OTHERS, audits
from warehouse.lineages.edits import active_edits
from warehouse.nights.quarantine import release

pytestmark = [pytest.mark.usefixtures("bare_nights"), pytest.mark.law]
FIRST, SECOND, THIRD = (u[0][1] for u in UPDATES)
LAST = LATER[1][0][1]
#: What the first subject turns to in the second night.
AGAIN = LATER[0][3]
#: What a fact that is taken back without another in its place is edited to.
ERASED = "unknown"
NIGHTS = ("night-01", "night-02", "night-03", "night-04")


def taken_back(number: int, night: int, update: int) -> str:
    """The removal of a statement that an update had set, with nothing in its place."""
    subject, prop, _, new = UPDATES[update]
    line = event(number, night, subject, prop, new, new)
    return json.dumps(line | {"op": "remove_statement", "new_value": None, "statement_id": f"{subject[0]}$test-{update + 1}"})


def let_go(home: Home, record: str) -> None:
    with warehouse(configure(home.config)) as wh:
        release(wh, record, reason="the source is right", actor="ada")


@pytest.fixture(scope="module")
def four(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Three edits; one changes again and two are taken back, whose records a person releases, one for each later night."""
    folder = tmp_path_factory.mktemp("withdrawn")
    lines = {
        "night-01": [json.dumps(event(i, 1, *u)) for i, u in enumerate(UPDATES, 1)],
        "night-02": [json.dumps(event(1, 2, UPDATES[0][0], UPDATES[0][1], UPDATES[0][3], AGAIN)),
                     taken_back(2, 2, 1), taken_back(3, 2, 2)],
        "night-03": [json.dumps(event(1, 3, *LATER[1]))],
        # A statement about itself, which no editor sees.
        "night-04": [json.dumps(event(1, 4, LATER[0][0], LATER[0][1], LATER[0][2], LATER[0][0]))],
    }  # fmt: skip
    for name, night in lines.items():
        write_night(folder, name, night)
    source = {"kind": "recorded", "path": str(folder)}
    home = begun(world, folder / "home", source=source, editor={"name": "ledger"})
    with pytest.MonkeyPatch.context() as patched:
        bare(patched)
        for night in NIGHTS:
            if night == "night-03":
                let_go(home, "t02-002")
            if night == "night-04":
                let_go(home, "t02-003")
            assert home.run(night).verdict == "promote", night
    return home


@pytest.fixture
def own(four: Home, tmp_path: Path) -> Home:
    """A copy that a test may change."""
    shutil.copytree(four.path, tmp_path / "home")
    return Home({**four.config, "home": str(tmp_path / "home")})


def checkpoint_of(home: Home, night: str) -> str:
    return home.rows(f"SELECT checkpoint_id FROM checkpoints WHERE night = '{night}'")[0]["checkpoint_id"]


def in_force(home: Home) -> dict[str, str]:
    with warehouse(configure(home.config)) as wh:
        return {r.subject: r.target_new for _, r in active_edits(wh, "main")}


def gates(model: EditableModel) -> dict[str, bytes]:
    """Everything that the slots add to the model, bit for bit."""
    (book,) = [b for b in model.memories.values() if isinstance(b, SlotBook)]
    return {name: t.numpy().tobytes() for name, t in vars(book.gates).items()}


def served(home: Home) -> dict[str, bytes]:
    return gates(at_checkpoint(configure(home.config), home.store, home.head().checkpoint))


def never_otherwise(home: Home) -> dict[str, bytes]:
    """The gates of a model that only ever had the edits in force, all at once."""
    settings = configure(home.config)
    with warehouse(settings) as wh:
        requests = [r for _, r in active_edits(wh, "main")]
    base = base_model(settings)
    editor = editor_of(settings, base)
    base.push(editor.edit(base, batch_of(requests), preparation_of(settings, editor, base)))
    return gates(base)


def test_what_was_taken_back_is_answered_by_unknown(four: Home) -> None:
    assert in_force(four) == {FIRST: AGAIN[1], SECOND: ERASED, THIRD: ERASED, LAST: LATER[1][3][1]}


def test_after_superseding_and_erasing_the_state_is_that_of_never_having_had_the_old_edits(four: Home) -> None:
    assert served(four) == never_otherwise(four)


def test_reverting_all_of_a_night_serves_the_state_without_it(own: Home) -> None:
    """One edit of the night had replaced another, which is in force again; the other was of a new subject."""
    wanted = in_force(own) | {SECOND: UPDATES[1][3][1]}
    del wanted[LAST]
    assert revert_edits(checkpoint_of(own, "night-03"), "it was wrong", config=own.config).verdict == "promote"
    assert in_force(own) == wanted
    assert served(own) == never_otherwise(own)


def test_warehouse_and_audit_hold(four: Home) -> None:
    assert four.findings() == []
    assert audit(configure(four.config)).breaks == ()


@pytest.mark.parametrize("setting", OTHERS)
def test_the_audit_on_another_machine_finds_nothing_but_what_was_tampered_with(own: Home, setting: str, tmp_path: Path) -> None:
    bad = {**own.config, "home": str(tmp_path / "bad")}
    shutil.copytree(own.path, tmp_path / "bad")
    patch = min((tmp_path / "bad" / "store").rglob("patch.safetensors"))
    data = bytearray(patch.read_bytes())
    data[-1] ^= 1
    patch.write_bytes(bytes(data))
    sound, found = audits(setting, [own.config, bad], tmp_path)
    assert sound == [] and found


@pytest.mark.parametrize("night", NIGHTS[:3])
def test_a_rollback_to_any_night_serves_the_edits_of_that_night(own: Home, night: str) -> None:
    restore(configure(own.config), checkpoint_of(own, night), "back")
    wanted = {
        "night-01": {u[0][1]: u[3][1] for u in UPDATES},
        "night-02": {FIRST: AGAIN[1], SECOND: UPDATES[1][3][1], THIRD: UPDATES[2][3][1]},
        "night-03": {FIRST: AGAIN[1], SECOND: ERASED, THIRD: UPDATES[2][3][1], LAST: LATER[1][3][1]},
    }[night]
    assert in_force(own) == wanted
    assert served(own) == never_otherwise(own)
    assert own.findings() == []


@pytest.mark.parametrize("update", [0, 1])
def test_reverting_a_newer_answer_or_an_erasure_gives_the_older_one_back(own: Home, update: int) -> None:
    subject, _, _, (_, older) = UPDATES[update]
    with warehouse(configure(own.config)) as wh:
        (edit,) = [e.edit_id for e, r in active_edits(wh, "main") if r.subject == subject[1]]
    assert revert_edits(edit, "it was wrong", config=own.config).verdict == "promote"
    assert in_force(own)[subject[1]] == older
    assert served(own) == never_otherwise(own)
    assert own.findings() == []


def test_the_footprint_of_slots_says_that_no_weight_differs(four: Home) -> None:
    found = edit_footprint(configure(four.config), "production", since=checkpoint_of(four, "night-02"))
    assert found.weights == ()
    (slots,) = found.slots
    assert (slots.slots, slots.edits, slots.added, slots.changed, slots.removed) == (4, 4, 1, 2, 0)
    assert slots.median_norm > 0
