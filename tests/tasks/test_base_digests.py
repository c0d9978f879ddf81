"""A base's digest is read once for each version of its files; a record that does not fit, or is damaged, is not believed."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from editors.model import EditableModel
from tasks.recheck import weights
from tasks.serving import base_digests, models
from tasks.serving.base_digests import FILE, remember, remembered, stamp_of
from tasks.serving.models import base_model
from tasks.settings import ModelSettings, Settings
from tests.support import tiny_model

SHA = "ab" * 32
WEIGHTS = "model.safetensors"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A tiny base in a folder, treated as a large one whose files have been there for a while."""
    monkeypatch.setattr(base_digests, "WORTH_BYTES", 1)
    monkeypatch.setattr(base_digests, "SETTLED_S", -3600.0)
    monkeypatch.setattr(models, "_LOADED", {})
    tiny_model().save_pretrained(tmp_path / "base")
    (tmp_path / "home").mkdir()
    return Settings(home=tmp_path / "home", model=ModelSettings(name=str(tmp_path / "base")))


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that all weights were read for a digest."""
    found: list[str] = []
    whole = EditableModel._content_digest

    def counted(self: EditableModel, *more: object) -> str:
        found.append(whole(self, *more))  # pyright: ignore[reportArgumentType]
        return found[-1]

    monkeypatch.setattr(EditableModel, "_content_digest", counted)
    return found


def load(settings: Settings) -> str:
    """The digest that a new process would have."""
    models._LOADED.clear()
    return base_model(settings).base_digest


def weights_of(settings: Settings) -> Path:
    return Path(settings.model.name) / WEIGHTS


def other_weights(settings: Settings, folder: Path) -> Path:
    tiny_model(seed=1).save_pretrained(folder)
    return folder / WEIGHTS


def test_unchanged_files_are_read_for_their_digest_once(settings: Settings, readings: list[str]) -> None:
    first = load(settings)
    assert load(settings) == load(settings) == first
    assert readings == [first]


def test_the_record_holds_for_this_dtype_and_these_libraries_alone(
    settings: Settings, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(settings)
    half = settings.model_copy(update={"model": settings.model.model_copy(update={"dtype": "bfloat16"})})
    assert load(half) != readings[0] and len(readings) == 2
    assert load(settings) == readings[0] and load(half) == readings[1] and len(readings) == 2
    monkeypatch.setattr(base_digests, "version", lambda _: "another")
    load(settings)
    assert len(readings) == 3


def touch(settings: Settings) -> None:
    os.utime(weights_of(settings), ns=(1, 1))


def change_the_config(settings: Settings) -> None:
    path = weights_of(settings).with_name("config.json")
    path.write_text(path.read_text().replace('"n_positions"', ' "n_positions"'))


def replace(settings: Settings) -> None:
    path = weights_of(settings)
    other_weights(settings, settings.home / "other").replace(path)


def change_the_bytes_and_put_the_times_back(settings: Settings) -> None:
    path = weights_of(settings)
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


def copy_to_another_inode(settings: Settings) -> None:
    path = weights_of(settings)
    shutil.copy2(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)


@pytest.mark.parametrize(
    "change", [touch, change_the_config, replace, change_the_bytes_and_put_the_times_back, copy_to_another_inode]
)
def test_files_that_changed_are_read_again(change: Callable[[Settings], None], settings: Settings, readings: list[str]) -> None:
    first = load(settings)
    time.sleep(0.02)  # a tick of the file system's clock
    change(settings)
    readings.clear()
    now = load(settings)
    assert readings == [now]
    assert (now != first) == (change in {replace, change_the_bytes_and_put_the_times_back})
    assert load(settings) == now and readings == [now]


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff\xfe", b'{"x": 3}'])
def test_a_damaged_record_is_ignored_and_made_again(damage: bytes, settings: Settings, readings: list[str]) -> None:
    first = load(settings)
    (settings.home / FILE).write_bytes(damage)
    assert load(settings) == first and load(settings) == first
    assert len(readings) == 2


@pytest.mark.parametrize("digest", [None, 3, "short", SHA.upper()])
def test_what_is_no_digest_is_not_taken_for_one(digest: object, settings: Settings) -> None:
    load(settings)
    records = json.loads((settings.home / FILE).read_bytes())
    (settings.home / FILE).write_text(json.dumps({key: {**value, "digest": digest} for key, value in records.items()}))
    assert remembered(settings.home, settings.model, stamp_of(settings.model)) is None


def test_many_writers_leave_a_whole_record(settings: Settings) -> None:
    stamp = stamp_of(settings.model)
    assert stamp is not None
    others = [settings.model.model_copy(update={"revision": str(i)}) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda own: remember(settings.home, own, stamp, SHA), others * 3))
    remember(settings.home, settings.model, stamp, SHA)
    assert remembered(settings.home, settings.model, stamp) == SHA
    assert all(value["digest"] == SHA for value in json.loads((settings.home / FILE).read_bytes()).values())
    assert [p.name for p in settings.home.iterdir()] == [FILE]


def test_files_that_change_while_they_are_read_are_read_again_and_not_recorded(
    settings: Settings, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(settings)
    stamps = iter([stamp_of(settings.model), {"another": "stamp"}])
    monkeypatch.setattr(models, "stamp_of", lambda _: next(stamps))
    load(settings)
    assert len(readings) == 2


def test_small_and_fresh_models_and_those_with_code_of_their_own_are_not_recorded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stamp_of(settings.model) is not None
    assert stamp_of(settings.model.model_copy(update={"trust_remote_code": True})) is None
    assert stamp_of(settings.model.model_copy(update={"name": "nobody/nothing", "revision": "r"})) is None
    monkeypatch.setattr(base_digests, "SETTLED_S", 3600.0)
    assert stamp_of(settings.model) is None
    monkeypatch.setattr(base_digests, "SETTLED_S", -3600.0)
    monkeypatch.setattr(base_digests, "WORTH_BYTES", 64 << 20)
    assert stamp_of(settings.model) is None


def test_a_home_that_is_not_there_is_not_made(settings: Settings) -> None:
    remember(settings.home / "not-there", settings.model, {}, SHA)
    assert not (settings.home / "not-there").exists()


def test_the_base_is_read_where_it_is_asked_and_whatever_lies_on_it(settings: Settings) -> None:
    load(settings)
    models._LOADED.clear()
    model = base_model(settings)
    name = model.parameter_names()[-1]
    model.overwrite(name, model.parameter(name) + 1)
    assert model.read_base_digest() == model.base_digest != model.state_digest()
    model._originals.clear()
    assert model.read_base_digest() != model.base_digest


def test_an_audit_asks_the_weights_and_not_the_record(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    claimed: Any = SimpleNamespace(checkpoint=SimpleNamespace(base_digest=SHA))
    model.base_digest = SHA
    monkeypatch.setattr(weights, "read_pointer", lambda *_: [SimpleNamespace(checkpoint_id="c")])
    monkeypatch.setattr(weights, "read_manifest", lambda *_: claimed)
    monkeypatch.setattr(weights, "at_checkpoint", lambda *_: model)
    store: Any = None
    (found,) = weights.rederived(settings, store).breaks
    assert found.what == f"base {settings.model.name}"
    assert found.found == f"its weights have digest {model.read_base_digest()[:12]}, not {SHA[:12]} as the checkpoint says"
