"""Exports as folders: whole or not there, and never over something else. Edited checkpoints: tests/flows/test_revert.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from editors.errors import UnsupportedModel
from tasks.serving.export import export
from tasks.settings import ModelSettings, Settings
from tests.support import tiny_model
from warehouse.errors import Conflict


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
    assert (found.form, found.patches, found.whole) == ("model", 0, True)
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
