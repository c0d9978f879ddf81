"""Models of nights: their names in records that leave this machine, and the base that they must stand on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.candidate import Candidate
from tasks.serving.models import at_checkpoint, shown_name
from tasks.settings import Settings
from tasks.workspace import store_of
from tests.support import tiny_model


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
