"""What a night writes to be served is written once, and again where anything of it is not as it was written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from editors.export.form import PlainForm
from editors.export.plain import Materialised, materialise
from editors.model import EditableModel
from tasks.candidate import Candidate, TakenOut
from tasks.proving.engine import CARD
from tasks.serving import plain_folder as place
from tasks.serving.models import base_model
from tasks.serving.plain_folder import PlainFolder, answering, drop_plain_folder, plain_folder
from tasks.settings import ModelSettings, ServingSettings, Settings
from tests.support import tiny_model
from warehouse.records import Checkpoint


class Killed(Exception):
    """Stands for a power cut."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    tiny_model("gpt2").save_pretrained(tmp_path / "base")
    return Settings(home=tmp_path / "home", model=ModelSettings(name=str(tmp_path / "base")), threads=1)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where a folder was written, each time."""
    found: list[Path] = []

    def counted(model: EditableModel, checkpoint: Checkpoint, folder: Path, form: PlainForm) -> Materialised:
        found.append(folder)
        return materialise(model, checkpoint, folder, form)

    monkeypatch.setattr(place, "materialise", counted)
    return found


def made(settings: Settings, patches: tuple[str, ...] = ()) -> PlainFolder:
    model = base_model(settings)
    done = Candidate.model_construct(
        night="night-01", parent=None, base_digest=model.base_digest, parent_patches=(), new_patches=patches, revert=TakenOut()
    )
    return plain_folder(settings, model, done)


def test_a_folder_that_is_as_it_was_written_is_not_written_again(settings: Settings, written: list[Path]) -> None:
    first = made(settings)
    (first.path / CARD).write_text("a card of a promotion that was killed\n")
    assert made(settings) == first and len(written) == 1
    assert first.load(base_model(settings)).next_token_log_probs(["a"]).shape == (1, 420)


@pytest.mark.parametrize("what", ["a changed file", "a missing file", "another file", "no record", "half a record"])
def test_a_folder_that_is_not_as_it_was_written_is_written_anew(what: str, settings: Settings, written: list[Path]) -> None:
    first = made(settings)
    before = (first.path / "model.safetensors").read_bytes()
    record = first.path.with_name("plain.json")
    if what == "a changed file":
        (first.path / "model.safetensors").write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    elif what == "a missing file":
        (first.path / "config.json").unlink()
    elif what == "another file":
        (first.path / "more.json").write_text("{}")
    elif what == "no record":
        record.unlink()
    else:
        os.truncate(record, 20)
    again = made(settings)
    assert again == first and len(written) == 2
    assert (again.path / "model.safetensors").read_bytes() == before
    assert (again.path / "config.json").exists() and not (again.path / "more.json").exists()


def test_another_candidate_and_another_form_are_other_folders(settings: Settings, written: list[Path]) -> None:
    made(settings)
    made(settings, ("a" * 64,))
    half = made(settings.model_copy(update={"serving": ServingSettings(dtype="bfloat16")}), ("a" * 64,))
    assert len(written) == 3 and half.dtype == torch.bfloat16
    assert half.load(base_model(settings)).hf.dtype == torch.bfloat16


def test_a_kill_while_it_is_written_leaves_nothing_that_is_taken_for_it(
    settings: Settings, written: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    for name in ("whole_folder", "write_whole"):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(place, name, die)
            made(settings)
    assert (made(settings).path / "model.safetensors").exists()
    assert len(written) == 2
    drop_plain_folder(settings, "night-01")
    assert not list((settings.work / "night-01").iterdir())


def test_where_weights_hold_not_every_edit_or_do_not_load_the_hooked_model_answers(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    model, plain = base_model(settings), made(settings)
    assert answering(model, plain).digest == model.digest and answering(model, plain) is not model
    assert answering(model, PlainFolder(plain.path, plain.dtype, "it has a memory")) is model
    (plain.path / "config.json").unlink()
    with caplog.at_level("WARNING", place.log.name):
        assert answering(model, plain) is model
    assert "config.json" in caplog.text
