"""Models of nights: their names in records that leave this machine, and the base that they must stand on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.candidate import Candidate
from tasks.serving.models import at_checkpoint, base_model, device_of, shown_name
from tasks.settings import ModelSettings, Settings
from tasks.workspace import store_of
from tests.support import tiny_model
from warehouse.errors import UsageError


@pytest.mark.parametrize("name, shown", [("/home/someone/models/gpt", "gpt"), ("owner/gpt2-xl", "owner/gpt2-xl")])
def test_a_local_folder_shows_its_last_part_and_a_hub_id_itself(name: str, shown: str) -> None:
    model = tiny_model()
    model.name = name
    assert shown_name(model) == shown


def test_a_candidate_of_another_base_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tasks.serving.models.base_model", lambda _: tiny_model())
    settings = Settings(home=tmp_path)
    done = Candidate(
        night="n", editor="memit", config_digest="c", parent=None, base_digest="another", parent_patches=(),
        new_patches=("p",), edited=(), skipped=(), right_after=(), edit_seconds=0.0, patch_bytes=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="belongs to base another"):
        at_checkpoint(settings, store_of(settings), done)


def machine(monkeypatch: pytest.MonkeyPatch, *, gpus: int, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize("gpus, mps, found", [(2, False, "cuda:0"), (1, True, "cuda:0"), (0, True, "mps"), (0, False, "cpu")])
def test_the_device_of_auto_is_the_first_that_is_there(
    gpus: int, mps: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus=gpus, mps=mps)
    assert str(device_of("auto")) == found
    assert str(device_of("cpu")) == "cpu"


@pytest.mark.parametrize("wanted, gpus", [("cuda", 0), ("cuda:2", 2), ("mps", 2)])
def test_a_device_that_is_absent_is_refused_in_one_line_that_says_what_is_there(
    wanted: str, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus=gpus, mps=False)
    here = ", ".join([*(f"cuda:{i}" for i in range(gpus)), "cpu"])
    with pytest.raises(UsageError, match=rf"model\.device {wanted} is not there: .* finds {here}; ") as refused:
        device_of(wanted)
    assert "\n" not in str(refused.value)


def test_a_base_model_is_loaded_in_its_own_dtype_where_that_is_asked_for(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base", torch.bfloat16)
    settings = Settings(home=tmp_path, model=ModelSettings(name=str(tmp_path / "base"), dtype="auto", device="auto"))
    assert base_model(settings).hf.dtype == torch.bfloat16
