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
from editors.gguf_files import read_header
from editors.presets import load_editor
from editors.session import batch_of
from tasks.serving.export import export
from tasks.settings import ModelSettings, Settings
from tests.architectures import model_of
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
        export(settings, "base", tmp_path / "out", form="peft")
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_a_rank_without_an_adapter_is_an_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--format peft"):
        export(settings, "base", tmp_path / "out", max_rank=4)


def test_a_gguf_is_one_file_beside_nothing(settings: Settings, base: Path, tmp_path: Path) -> None:
    found = export(settings, "base", tmp_path / "new" / "base.gguf", form="gguf", kind="F16")
    assert (found.form, found.type, found.wider, found.patches) == ("gguf", "F16", 0, 0)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["base.gguf"]
    header = read_header(tmp_path / "new" / "base.gguf")
    assert header.architecture == "gpt2" and found.checkpoint_id in header.values["general.description"]


def test_a_gguf_has_a_name_of_its_own_that_nothing_has(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not end in \.gguf"):
        export(settings, "base", tmp_path / "base", form="gguf")
    (tmp_path / "base.gguf").write_bytes(b"mine")
    with pytest.raises(Conflict, match="is there already"):
        export(settings, "base", tmp_path / "base.gguf", form="gguf")
    assert (tmp_path / "base.gguf").read_bytes() == b"mine"


def test_a_gguf_of_a_model_that_it_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    model_of("olmo2").save_pretrained(tmp_path / "olmo")
    settings = Settings(home=tmp_path / "home", model=ModelSettings(name=str(tmp_path / "olmo")), threads=1)
    with pytest.raises(UnsupportedModel, match="Olmo2ForCausalLM"):
        export(settings, "base", tmp_path / "out" / "base.gguf", form="gguf")
    assert not list((tmp_path / "out").iterdir())


def test_a_type_without_a_gguf_is_an_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--format gguf"):
        export(settings, "base", tmp_path / "out", kind="F16")


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
