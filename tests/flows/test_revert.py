"""Taking edits out of what is served: what leaves, what stays, what the gate says, what a kill leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from editors.patches.files import load_patch
from editors.patches.total import active_total
from editors.session import run_edits
from tasks.candidate import edited_before
from tasks.recheck.audit import audit
from tasks.serving.export import export
from tasks.serving.models import at_checkpoint, base_model, patch_folder
from tasks.serving.prepare import editor_of, preparation_of
from tasks.settings import configure
from tasks.takeback.plan import plan_revert
from tasks.takeback.rollback import restore
from tasks.workspace import warehouse
from tests.flows.conftest import Home, bare, begun, revert_edits
from tests.flows.nights import LATER, UPDATES, config_of, event, first_night, write_night
from warehouse.database.connection import Warehouse
from warehouse.errors import Conflict, NotFound
from warehouse.lineages.edits import active_edits
from warehouse.lineages.history import blame, facts_in_force
from warehouse.records import NightRun

pytestmark = pytest.mark.usefixtures("bare_nights")
#: Subject and answer of the first night's edits; the second night changes the first of them to NEW.
OLD, SECOND, THIRD = ((u[0][1], u[3][1]) for u in UPDATES)
NEW = LATER[0][3][1]


class Broken(Exception):
    """Stands for a power cut."""


@pytest.fixture(scope="module")
def nights(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three new facts; then one of them changes again, and another subject comes."""
    folder = tmp_path_factory.mktemp("reverted")
    write_night(folder, "night-01", first_night())
    subject, prop, _, was = UPDATES[0]
    again = event(1, 2, subject, prop, was, LATER[0][3])
    write_night(folder, "night-02", [json.dumps(again), json.dumps(event(2, 2, *LATER[1]))])
    return {**world, "source": {"kind": "recorded", "path": str(folder)}}


def made(nights: dict[str, Any], home: Path, **changes: Any) -> Home:
    found = begun(nights, home, **changes)
    for night in ("night-01", "night-02"):
        assert found.run(night).verdict == "promote"
    return found


@pytest.fixture(scope="module")
def original(
    nights: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Home:  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        bare(patched)
        return made(nights, tmp_path_factory.mktemp("two-nights") / "home")


def copied(home: Home, nights: dict[str, Any], folder: Path) -> Home:
    shutil.copytree(home.path, folder / "home")
    return Home(config_of(nights, folder / "home"))


@pytest.fixture
def two(original: Home, nights: dict[str, Any], tmp_path: Path) -> Home:
    """Two nights by memit, of its own."""
    return copied(original, nights, tmp_path)


def revert(home: Home, target: str, **changes: Any) -> NightRun:
    return revert_edits(target, "it was wrong", config={**home.config, **changes})


def facts(home: Home) -> dict[tuple[str, str], str]:
    """Edit ids in force at the head, by subject and answer."""
    with Warehouse.open(home.path / "warehouse.duckdb") as wh:
        found = facts_in_force(wh, "main", home.head().checkpoint.checkpoint_id)
    return {(f.subject, f.target_new): f.edit_id for f in found}


def night_of(home: Home, night: str) -> str:
    return home.rows(f"SELECT checkpoint_id FROM checkpoints WHERE night = '{night}'")[0]["checkpoint_id"]


def weights(home: Home) -> dict[str, torch.Tensor]:
    model = at_checkpoint(configure(home.config), home.store, home.head().checkpoint)
    return {name: model.parameter(name).clone() for name in model.parameter_names()}


# ---------------------------------------------------------------- a whole checkpoint


@pytest.fixture(scope="module")
def without_first(original: Home, nights: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Home:
    found = copied(original, nights, tmp_path_factory.mktemp("without-first"))
    assert revert(found, night_of(found, "night-01")).verdict == "promote"
    return found


def test_a_reverted_checkpoint_leaves_the_weights_of_the_others(original: Home, without_first: Home) -> None:
    first, second = original.head().checkpoint.patch_digests
    settings = configure(without_first.config)
    wanted = base_model(settings)
    wanted.push(load_patch(patch_folder(settings, second)))
    expected = {name: wanted.parameter(name).clone() for name in wanted.parameter_names()}
    assert first not in without_first.head().checkpoint.patch_digests
    assert all(torch.equal(value, expected[name]) for name, value in weights(without_first).items())


def test_what_stays_in_force_is_what_was_not_reverted(original: Home, without_first: Home) -> None:
    assert set(facts(without_first)) == set(facts(original)) - {SECOND, THIRD}
    assert without_first.findings() == []


def test_the_parent_of_a_revert_is_the_head_it_was_made_from(original: Home, without_first: Home) -> None:
    assert without_first.head().checkpoint.parent == original.head().checkpoint.checkpoint_id
    assert without_first.head().night.startswith("revert-")


def test_reverted_answers_are_measured_as_obsolete(without_first: Home) -> None:
    asked = without_first.rows(
        f"SELECT targets FROM probes WHERE kind = 'obsolete' AND set_digest = '{without_first.head().report.probe_set_digest}'"
    )
    assert {SECOND[1], THIRD[1]} <= {t for row in asked for t in row["targets"]}


def test_the_audit_finds_nothing_wrong_with_a_revert(without_first: Home) -> None:
    assert audit(configure(without_first.config)).breaks == ()


def test_a_revert_is_undone_by_a_rollback_and_not_by_a_revert(without_first: Home) -> None:
    with pytest.raises(Conflict, match="errata rollback"):
        revert(without_first, "production")


# ---------------------------------------------------------------- one edit


@pytest.fixture(scope="module")
def without_one(original: Home, nights: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Home:
    """One edit of a batch of three, by a revert that was killed before each of its steps."""
    found = copied(original, nights, tmp_path_factory.mktemp("without-one"))
    edit = facts(found)[SECOND]

    def die(*_: Any, **__: Any) -> None:
        raise Broken

    for step in ("take_out", "evaluate", "gate", "promote", "publish_revert", "close"):
        with pytest.MonkeyPatch.context() as patched, pytest.raises(Broken):
            patched.setattr(f"flows.revert.{step}", die)
            revert(found, edit[:8])
    line = revert(found, edit[:8])
    assert (line.verdict, line.checkpoint_id) == ("promote", found.head().checkpoint.checkpoint_id)
    return found


def test_one_edit_leaves_a_batch_that_is_made_again_without_it(original: Home, without_one: Home) -> None:
    before, after = original.head().checkpoint.patch_digests, without_one.head().checkpoint.patch_digests
    assert set(facts(without_one)) == set(facts(original)) - {SECOND}
    assert len(after) == 2
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)


def test_kills_at_every_step_lose_and_double_nothing(without_one: Home) -> None:
    assert without_one.findings() == []
    # The base, two nights, one revert.
    assert len(without_one.rows("SELECT * FROM checkpoints")) == 4
    assert len(without_one.rows("SELECT * FROM runs WHERE night LIKE 'revert-%'")) == 1


def test_the_trail_says_once_who_reverted_what_and_why(original: Home, without_one: Home) -> None:
    noted = without_one.rows("SELECT subject, reason, payload::TEXT AS payload FROM audit WHERE kind = 'revert'")
    assert [(n["subject"], n["reason"]) for n in noted] == [(without_one.head().night, "it was wrong")]
    assert json.loads(noted[0]["payload"])["edits"] == [facts(original)[SECOND]]


def test_blame_knows_that_the_answer_was_reverted(original: Home, without_one: Home) -> None:
    with Warehouse.open(without_one.path / "warehouse.duckdb") as wh:
        newest = blame(wh, "main", SECOND[0], UPDATES[1][1][0])[0]
    assert (newest.fact.edit_id, newest.in_force, newest.status) == (facts(original)[SECOND], False, "superseded")


def test_a_second_revert_of_the_same_edit_says_that_it_is_gone(original: Home, without_one: Home) -> None:
    with pytest.raises(NotFound, match=r"nothing of .* is in force .*it was wrong"):
        revert(without_one, facts(original)[SECOND])


# ---------------------------------------------------------------- slots that were edited twice, gates, the ledger editor


def test_an_edit_that_the_reverted_one_had_replaced_is_in_force_again(two: Home) -> None:
    assert OLD not in facts(two)
    revert(two, facts(two)[OLD[0], NEW])
    assert OLD in facts(two)
    assert (OLD[0], NEW) not in facts(two)
    assert two.findings() == []


def test_an_unfinished_revert_is_planned_anew_where_the_lineage_has_moved(two: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise Broken

    first, edit = night_of(two, "night-01"), facts(two)[SECOND]
    with monkeypatch.context() as patched, pytest.raises(Broken):
        patched.setattr("flows.revert.evaluate", die)
        revert(two, edit)
    restore(configure(two.config), first, "to try again")
    plan = plan_revert(configure(two.config), edit, "once more")
    assert (plan.head, plan.reason, plan.edits) == (first, "once more", (edit,))


def test_what_the_gate_refuses_stays_in_production(two: Home, world: dict[str, Any]) -> None:
    before, served = facts(two), two.head().checkpoint.checkpoint_id
    strict = str(Path(world["policy"]).with_name("strict.yaml"))
    assert revert(two, night_of(two, "night-01"), policy=strict).verdict == "reject"
    assert two.head().checkpoint.checkpoint_id == served
    assert facts(two) == before


def test_the_ledger_editor_retracts_and_gives_an_earlier_answer_back(nights: dict[str, Any], tmp_path: Path) -> None:
    home = begun(nights, tmp_path / "home", editor={"name": "ledger"})

    def slots() -> dict[str, list[tuple[str, bytes]]]:
        model = at_checkpoint(configure(home.config), home.store, home.head().checkpoint)
        (book,) = model.memories.values()
        return {s: [(r.target_new, slot.value.numpy().tobytes()) for r in slot.requests] for s, slot in book.slots.items()}

    home.run("night-01")
    before = slots()
    home.run("night-02")
    assert slots() != before
    # One of its edits had replaced an earlier one, the other is of a new subject.
    revert(home, "production")
    assert slots() == before
    assert home.findings() == []


def test_patches_that_cannot_stand_without_the_reverted_one_are_made_again(nights: dict[str, Any], tmp_path: Path) -> None:
    """A codebook's entries are counted: without its first edit the later ones must be made anew."""
    home = begun(nights, tmp_path / "home", editor={"name": "grace", "batch_size": 1})
    home.run("night-01")
    line = revert(home, facts(home)[OLD])
    settings, base = configure(home.config), base_model(configure(home.config))
    with warehouse(settings) as wh:
        stay = [r for _, r in active_edits(wh, "main")]
    editor = editor_of(settings, base)
    wanted = [s.patch.digest for s in run_edits(editor, base, stay, preparation_of(settings, editor, base), mode="sequential")]
    assert {(r.subject, r.target_new) for r in stay} == {SECOND, THIRD}
    assert (line.verdict, line.edited) == ("promote", 2)
    assert list(home.head().checkpoint.patch_digests) == wanted
    assert home.findings() == []


def test_an_edit_of_any_editor_that_retracts_is_retracted(nights: dict[str, Any], tmp_path: Path) -> None:
    """The solved ledger's patches hold the whole set: taking one edit out is one new total, and no edit made again."""
    home = made(nights, tmp_path / "home", editor={"name": "ledger_solve"})
    active = facts(home)
    line = revert(home, active.pop((OLD[0], NEW)))
    settings, store = configure(home.config), home.store
    total = active_total(at_checkpoint(settings, store, home.head().checkpoint))
    assert (line.verdict, len(home.head().checkpoint.patch_digests)) == ("promote", 3)
    assert total is not None
    assert {(r.subject, r.target_new) for group in total.active.values() for r in group} == {*active, OLD} == {*facts(home)}
    done = edited_before(settings, line.night)
    assert done is not None and done.revert.remade == ()
    assert home.findings() == []


def test_a_revert_needs_a_reason(two: Home) -> None:
    with pytest.raises(ValueError, match="reason"):
        revert_edits("production", " ", config=two.config)


# ---------------------------------------------------------------- export


def test_the_adapter_of_a_promoted_checkpoint_has_its_logits(two: Home, tmp_path: Path) -> None:
    settings = configure(two.config)
    found = export(settings, "production", tmp_path / "adapter", form="peft")
    export(settings, "production", tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(two.config["model"]["name"])
    whole = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        plain, wanted = base(ids).logits, whole(ids).logits
        adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))(ids).logits
    assert found.patches == 2
    assert (wanted - plain).abs().max() > 1e-2
    assert (adapted - wanted).abs().max() <= 1e-3
