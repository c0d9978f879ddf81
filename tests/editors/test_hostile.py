"""Patches and base models made by somebody who means harm: nothing in them runs, each is refused by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.errors import PatchError, UnsupportedModel
from editors.model import EditableModel
from editors.patches.files import load_patch, save_patch
from editors.patches.weight import Dense, WeightPatch
from tests.support import tiny_model
from warehouse.limits import Limits


class Payload:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.mark, "it ran")


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    save_patch(WeightPatch({"a.weight": Dense(torch.ones(2, 3))}), tmp_path / "patch")
    return tmp_path / "patch"


def test_the_payload_of_these_tests_does_run_where_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


# ---------------------------------------------------------------- patches


@pytest.mark.parametrize("name", ["pytorch_model.bin", "patch.pt", "patch.pkl", "extra.py"])
def test_a_pickle_or_code_in_a_patch_folder_is_refused_by_name(patch: Path, name: str, tmp_path: Path) -> None:
    (patch / name).write_bytes(pickle.dumps(Payload(tmp_path / "mark")))
    with pytest.raises(PatchError, match=name):
        load_patch(patch)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_in_the_place_of_the_tensors_is_refused(patch: Path, tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "mark"), patch / "patch.safetensors")
    with pytest.raises(PatchError, match=r"patch\.safetensors"):
        load_patch(patch)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["patch.json", "patch.safetensors"])
def test_a_link_in_the_place_of_a_file_is_refused(patch: Path, name: str, tmp_path: Path) -> None:
    (patch / name).rename(tmp_path / name)
    (patch / name).symlink_to(tmp_path / name)
    with pytest.raises(PatchError, match=rf"{name} is a symbolic link"):
        load_patch(patch)


def test_a_linked_patch_folder_is_refused(patch: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(patch)
    with pytest.raises(PatchError, match="symbolic link"):
        load_patch(tmp_path / "link")


@pytest.mark.parametrize(
    ("limits", "setting"),
    [(Limits(header_bytes=8), "header_bytes"), (Limits(json_bytes=8), "json_bytes"), (Limits(total_bytes=8), "total_bytes"),
     (Limits(files=1), "files")],
)  # fmt: skip
def test_a_patch_over_a_limit_is_refused(patch: Path, limits: Limits, setting: str) -> None:
    with pytest.raises(PatchError, match=rf"are allowed; raise limits\.{setting}"):
        load_patch(patch, limits=limits)


@pytest.mark.parametrize(
    "content",
    [b"[]", b"null", b'"text"', b"{}", b"\xff\xfe", b"[" * 100_000, b'{"kind": "weight", "meta": [], "digest": ""}',
     b'{"kind": "weight", "meta": {"form": []}, "digest": ""}', b'{"kind": "weight", "meta": {"updates": 3}, "digest": 7}',
     b'{"kind": "module", "meta": {"form": "slots", "slots": [{"forms": -1}]}, "digest": ""}',
     b'{"kind": "editors.model", "meta": {}, "digest": ""}', b'{"kind": 1e999, "meta": {}, "digest": ""}'],
)  # fmt: skip
def test_a_header_of_another_shape_is_refused_and_no_crash(patch: Path, content: bytes) -> None:
    (patch / "patch.json").write_bytes(content)
    with pytest.raises(PatchError, match="patch"):
        load_patch(patch)


def test_a_whole_patch_under_another_patchs_name_is_refused(patch: Path) -> None:
    with pytest.raises(PatchError, match=r"is patch .*, not ffffffffffff"):
        load_patch(patch, "f" * 64)


# ---------------------------------------------------------------- base models


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_model("gpt2").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_base_whose_weights_are_a_pickle_is_refused(base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "mark")))
    with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin, a pickle"):
        EditableModel.from_pretrained(str(base))
    assert not (tmp_path / "mark").exists()


def test_a_pickle_beside_safetensors_is_not_opened(base: Path, tmp_path: Path) -> None:
    before = EditableModel.from_pretrained(str(base)).base_digest
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "mark")))
    assert EditableModel.from_pretrained(str(base)).base_digest == before
    assert not (tmp_path / "mark").exists()


def test_code_of_a_base_model_does_not_run_unless_it_is_trusted(base: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (base / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').write('it ran')\n", encoding="utf-8")
    with pytest.raises(UnsupportedModel, match="trust_remote_code"):
        EditableModel.from_pretrained(str(base))
    assert not (tmp_path / "mark").exists()
