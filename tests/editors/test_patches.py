"""Patches on disk and on the model: forms of one update, damage, strangers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from editors.errors import PatchError, UnsupportedModel
from editors.model import EditableModel
from editors.patches.files import FORMS, load_patch, patch_class, save_patch
from editors.patches.memory import MemoryPatch, RadiusChange
from editors.patches.prompt import PromptPatch, StatedFact
from editors.patches.weight import Dense, LowRank, Sparse, Update, WeightPatch
from tests.support import tiny_model


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def updates() -> list[Update]:
    return [
        LowRank(randn(32, 3), randn(96, 3)),
        Sparse(torch.tensor([5, 700]), torch.tensor([1.0, -2.0]), (32, 96)),
        Dense(randn(32, 96)),
    ]


def sample_patches() -> list[WeightPatch | MemoryPatch | PromptPatch]:
    three = dict(zip("abc", updates(), strict=True))
    memory = MemoryPatch(
        "x.1", 2, randn(2, 4), randn(2, 3), torch.ones(2), [(1, 2), (3,)], ["r", "s"], [RadiusChange(0, 1.0, 0.5)]
    )
    return [
        WeightPatch(three, {"why": "test"}),
        WeightPatch({}),
        memory,
        PromptPatch([StatedFact("Łódź", "Łódź|P17", "New fact: Łódź lies in {x}.")], ["Shown."], 2),
    ]  # fmt: skip


@pytest.mark.parametrize("patch", sample_patches(), ids=["weight", "empty weight", "memory", "prompt"])
def test_a_saved_patch_loads_with_equal_digest_tensors_and_metadata(
    patch: WeightPatch | MemoryPatch | PromptPatch, tmp_path: Path
) -> None:
    save_patch(patch, tmp_path)
    loaded = load_patch(tmp_path)
    assert type(loaded) is type(patch)
    assert loaded.digest == patch.digest
    assert dict(loaded.meta) == dict(patch.meta)
    assert all(torch.equal(loaded.tensors[k], v) for k, v in patch.tensors.items())


def test_the_two_files_are_all_that_is_left(tmp_path: Path) -> None:
    save_patch(sample_patches()[0], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["patch.json", "patch.safetensors"]


@pytest.mark.parametrize("kind, form", FORMS)
def test_every_form_has_a_class_of_its_kind(kind: str, form: str) -> None:
    assert patch_class(kind, form).kind == kind


def test_a_changed_tensor_is_found_out(tmp_path: Path) -> None:
    save_patch(sample_patches()[0], tmp_path)
    tensors = load_file(tmp_path / "patch.safetensors")
    tensors["c|dense"][0, 0] += 1
    save_file(tensors, tmp_path / "patch.safetensors")
    with pytest.raises(PatchError, match="digest"):
        load_patch(tmp_path)


def test_a_changed_header_is_found_out(tmp_path: Path) -> None:
    save_patch(sample_patches()[3], tmp_path)
    header = json.loads((tmp_path / "patch.json").read_bytes())
    header["meta"]["facts"][0]["text"] = "New fact: something else."
    (tmp_path / "patch.json").write_text(json.dumps(header))
    with pytest.raises(PatchError, match="digest"):
        load_patch(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("patch.json", b"{"),
        ("patch.json", b'{"kind": "magic", "meta": {}, "digest": ""}'),
        ("patch.json", b'{"kind": "weight", "meta": {}, "digest": ""}'),
        ("patch.safetensors", b"short"),
    ],
    ids=["broken json", "unknown kind", "part missing", "broken tensors"],
)
def test_damage_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    save_patch(sample_patches()[0], tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PatchError, match=tmp_path.name):
        load_patch(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="cannot be read"):
        load_patch(tmp_path / "nowhere")


@pytest.mark.parametrize("number", range(3), ids=["low rank", "sparse", "dense"])
def test_every_form_of_update_adds_its_dense_form_in_either_orientation(number: int, tiny: EditableModel) -> None:
    update, name = updates()[number], tiny.anatomy.mlp_out.format(layer=1) + ".weight"
    before = tiny.weight(tiny.anatomy.mlp_out, 1).clone()
    tiny.push(WeightPatch({name: update}))
    torch.testing.assert_close(tiny.weight(tiny.anatomy.mlp_out, 1), before + update.dense())


def test_digest_tells_equal_bytes_of_other_shapes_and_kinds_apart() -> None:
    flat, square = (WeightPatch({"a": Dense(torch.zeros(shape))}) for shape in ((4,), (2, 2)))
    half = WeightPatch({"a": Dense(torch.zeros(8, dtype=torch.float16))})
    assert len({flat.digest, square.digest, half.digest}) == 3


def test_digest_does_not_depend_on_the_order_of_names() -> None:
    a, b = Dense(randn(2)), Dense(randn(3))
    assert WeightPatch({"a": a, "b": b}).digest == WeightPatch({"b": b, "a": a}).digest


def test_a_patch_for_another_model_is_refused_and_leaves_no_trace() -> None:
    model = tiny_model()
    before = model.state_digest()
    good, foreign = "transformer.h.1.mlp.c_proj.weight", "transformer.h.77.mlp.c_proj.weight"
    with pytest.raises(UnsupportedModel, match="77"):
        model.push(WeightPatch({good: Dense(randn(32, 96)), foreign: Dense(randn(32, 96))}))
    assert model.state_digest() == before
    assert not model.patches
