"""A night by the ledger editor: what it promotes is a plain model that answers the edits without any code of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from editors.errors import UnsupportedModel
from tasks.recheck.audit import audit
from tasks.serving.checkpoints import find_checkpoint
from tasks.serving.export import export
from tasks.serving.models import at_checkpoint, base_model
from tasks.settings import configure
from tasks.takeback.rollback import restore
from tasks.workspace import warehouse
from tests.flows.conftest import Home, bare, begun, revert_edits
from warehouse.checkpoints.manifests import read_manifest
from warehouse.checkpoints.pull import pull
from warehouse.lineages.edits import active_edits

pytestmark = pytest.mark.usefixtures("bare_nights")
TOKENS = 6


@pytest.fixture(scope="module")
def two(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Two nights by `ledger`, both promoted."""
    home = begun(world, tmp_path_factory.mktemp("ledger") / "home", editor={"name": "ledger"})
    with pytest.MonkeyPatch.context() as patched:
        bare(patched)
        assert [home.run(night).verdict for night in ("night-01", "night-02")] == ["promote", "promote"]
    return home


@pytest.fixture
def own(two: Home, tmp_path: Path) -> Home:
    """A copy that a test may change."""
    shutil.copytree(two.path, tmp_path / "home")
    return Home({**two.config, "home": str(tmp_path / "home")})


def asked(home: Home) -> list[str]:
    """The prompts of every edit in force, their rephrases, and one that no edit is about."""
    with warehouse(configure(home.config)) as wh:
        requests = [request for _, request in active_edits(wh, "main")]
    assert requests
    return [p for r in requests for p in (r.prompt, *r.rephrases)] + ["The capital of Japan is"]


def plain_answers(folder: Path, prompts: list[str]) -> list[str]:
    """Greedy continuations by transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=TOKENS, do_sample=False, attention_mask=torch.ones_like(ids))
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return found


def hooked_answers(home: Home, prompts: list[str]) -> list[str]:
    settings = configure(home.config)
    model = at_checkpoint(settings, home.store, find_checkpoint(settings, "production"))
    try:
        return [text.strip() for text in model.generate(prompts, TOKENS)]
    finally:
        model.rollback(0)


def note_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "errata.json").read_text(encoding="utf-8"))


def test_a_pulled_ledger_checkpoint_answers_as_the_hooked_model_does(two: Home, tmp_path: Path) -> None:
    pull(two.store, "production", tmp_path / "out")
    prompts = asked(two)
    wanted = hooked_answers(two, prompts)
    assert plain_answers(tmp_path / "out", prompts) == wanted
    assert [text.strip() for text in base_model(configure(two.config)).generate(prompts, TOKENS)] != wanted


def test_the_pulled_folder_says_where_each_edit_is(two: Home, tmp_path: Path) -> None:
    pull(two.store, "production", tmp_path / "out")
    assert note_of(tmp_path / "out")["weights_hold_every_edit"] is True
    places = json.loads((tmp_path / "out" / "slots.json").read_bytes())
    with warehouse(configure(two.config)) as wh:
        in_force = {request.request_id for _, request in active_edits(wh, "main")}
    assert {name for place in places for name in place["requests"]} == in_force
    assert len({column for place in places for column in place["columns"]}) == 2 * len(places)


def test_the_files_of_a_ledger_checkpoint_come_out_of_base_and_patches_bit_for_bit(two: Home) -> None:
    named = {key.rpartition("/")[2] for key in two.head().files}
    assert {"model.safetensors", "slots.json"} <= named
    assert audit(configure(two.config)).breaks == ()


def test_an_export_of_an_earlier_checkpoint_has_its_slots_alone(two: Home, tmp_path: Path) -> None:
    (row,) = two.rows("SELECT checkpoint_id FROM checkpoints WHERE night = 'night-01'")
    settings = configure(two.config)
    export(settings, row["checkpoint_id"], tmp_path / "first")
    export(settings, "production", tmp_path / "second")
    first, second = (json.loads((tmp_path / f / "slots.json").read_bytes()) for f in ("first", "second"))
    assert {p["subject"] for p in first} < {p["subject"] for p in second}


def test_an_adapter_of_slots_is_refused_with_the_form_that_fits(two: Home, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"module/slots.*--format hf.*wider feed-forward"):
        export(configure(two.config), "production", tmp_path / "out", form="peft")
    assert not (tmp_path / "out").exists()


def test_a_rollback_serves_the_earlier_plain_model_and_the_audit_holds(own: Home, tmp_path: Path) -> None:
    (row,) = own.rows("SELECT checkpoint_id FROM checkpoints WHERE night = 'night-01'")
    restore(configure(own.config), row["checkpoint_id"], "the second night was wrong")
    pull(own.store, "production", tmp_path / "out")
    assert note_of(tmp_path / "out")["checkpoint_id"] == row["checkpoint_id"]
    assert plain_answers(tmp_path / "out", asked(own)) == hooked_answers(own, asked(own))
    assert audit(configure(own.config)).breaks == ()


def test_a_reverted_night_has_the_very_weights_of_the_nights_without_it(own: Home) -> None:
    """Retraction is exact: the file of the model is bit for bit that of the checkpoint before."""
    (row,) = own.rows("SELECT checkpoint_id FROM checkpoints WHERE night = 'night-01'")
    revert_edits("production", "it was wrong", config=own.config)
    before, after = read_manifest(own.store, row["checkpoint_id"]), own.head()

    def weights(files: dict[str, str]) -> dict[str, str]:
        return {key.rpartition("/")[2]: digest for key, digest in files.items() if key.startswith("checkpoints/")}

    assert after.checkpoint.checkpoint_id != before.checkpoint.checkpoint_id
    same = ("model.safetensors", "slots.json", "config.json")
    assert [weights(dict(after.files))[n] for n in same] == [weights(dict(before.files))[n] for n in same]
    assert audit(configure(own.config)).breaks == ()
