"""Exports as folders: whole or not there, and never over something else. Edited checkpoints: tests/flows/test_revert.py."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from editors.errors import UnsupportedModel
from editors.export.plain import check_whole, materialise
from editors.presets import load_editor
from editors.session import batch_of
from tasks.serving.export import export
from tasks.settings import ModelSettings, Settings
from tests.support import CORPUS, SIX_REQUESTS, tiny_model
from warehouse.errors import Conflict
from warehouse.records import Checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("gpt2").save_pretrained(folder)
    return folder


@pytest.fixture
def settings(base: Path, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", model=ModelSettings(name=str(base)), threads=1)


def test_the_base_is_exported_as_it_is(settings: Settings, base: Path, tmp_path: Path) -> None:
    found = export(settings, "base", tmp_path / "out")
    assert (found.form, found.patches) == ("model", 0)
    first, second = (AutoModelForCausalLM.from_pretrained(str(f)).state_dict() for f in (base, tmp_path / "out"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert json.loads((tmp_path / "out" / "errata.json").read_text(encoding="utf-8"))["patch_digests"] == []


def test_an_empty_folder_is_filled_and_a_full_one_is_not_touched(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export(settings, "base", tmp_path / "empty")
    before = sorted(p.name for p in (tmp_path / "empty").iterdir())
    with pytest.raises(Conflict, match="holds something"):
        export(settings, "base", tmp_path / "empty")
    assert sorted(p.name for p in (tmp_path / "empty").iterdir()) == before


def test_an_adapter_that_cannot_be_leaves_nothing(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no weight update"):
        export(settings, "base", tmp_path / "out", peft=True)
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_a_rank_without_an_adapter_is_an_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--peft"):
        export(settings, "base", tmp_path / "out", max_rank=4)


def test_a_memory_is_refused_with_the_reason_and_a_note_of_before_with_the_kind(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    editor = load_editor("grace", model)
    model.push(editor.edit(model, batch_of(SIX_REQUESTS[:1]), editor.prepare(model, CORPUS)))
    made = Checkpoint(
        checkpoint_id="c" * 64, parent=None, patch_digests=(model.patches[0].digest,), created_at=datetime.now(UTC),
        base_model="local", base_revision="", base_digest=model.base_digest,
    )  # fmt: skip
    materialise(model, made, tmp_path / "out")
    with pytest.raises(UnsupportedModel, match=r"c{12} is no plain model: .* kind 'memory', which no plain model can hold"):
        check_whole(tmp_path / "out")
    note = json.loads((tmp_path / "out" / "errata.json").read_text(encoding="utf-8"))
    del note["why_not"]
    (tmp_path / "out" / "errata.json").write_text(json.dumps(note), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match=r"plain weights do not show its patches \(memory\)"):
        check_whole(tmp_path / "out")
