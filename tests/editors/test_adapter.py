"""Weight updates as LoRA adapters that peft loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from editors.errors import UnsupportedModel
from editors.export.adapter import AdaptedModule, check_modules, served_rank, write_adapter
from editors.model import EditableModel
from editors.patches.memory import MemoryPatch
from editors.patches.weight import Dense, LowRank, Sparse, Update, WeightPatch
from tests.architectures import SHAPES, model_of
from tests.support import tiny_model

TEXT = "The capital of France is Paris, and Ada Lovelace was born in"


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def out_name(model: EditableModel, layer: int) -> str:
    return model.anatomy.mlp_out.format(layer=layer) + ".weight"


def push(model: EditableModel, *updates: Mapping[str, Update]) -> EditableModel:
    for update in updates:
        model.push(WeightPatch(update))
    return model


def edited(model: EditableModel) -> EditableModel:
    """Two patches on one projection, one of them also on attention, and a sparse one elsewhere."""
    attention = model.anatomy.attention_out.format(layer=1) + ".weight"
    return push(
        model,
        {out_name(model, 1): LowRank(randn(32, 3), randn(96, 3, seed=1)), attention: LowRank(randn(32, 2), randn(32, 2))},
        {out_name(model, 1): LowRank(randn(32, 1, seed=2), randn(96, 1, seed=3))},
        {out_name(model, 3): Sparse(torch.tensor([5, 700, 701]), torch.tensor([1.0, -2.0, 0.5]), (32, 96))},
    )


@torch.no_grad()
def logits(hf: torch.nn.Module, model: EditableModel) -> torch.Tensor:
    return hf(**model.tokenizer(TEXT, return_tensors="pt", return_token_type_ids=False)).logits


def loaded(kind: str, folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(tiny_model(kind).hf, str(folder))


def kind_of(model: EditableModel) -> str:
    return model.anatomy.name


def test_peft_loads_the_adapter_with_the_logits_of_the_edited_model(tiny: EditableModel, tmp_path: Path) -> None:
    before = logits(tiny.hf, tiny)
    after = logits(edited(tiny).hf, tiny)
    write_adapter(tiny, tmp_path / "adapter", base="tiny")
    found = logits(loaded(kind_of(tiny), tmp_path / "adapter"), tiny)
    assert (after - before).abs().max() > 0.1
    assert (found - after).abs().max() <= 1e-3


def test_factors_of_several_patches_on_one_module_stand_side_by_side(tiny: EditableModel, tmp_path: Path) -> None:
    found = {m.module: m for m in write_adapter(edited(tiny), tmp_path / "adapter", base="tiny")}
    # Three and one; two of attention; the sparse update touches rows 0 and 7.
    assert sorted(m.rank for m in found.values()) == [2, 2, 4]
    assert max(m.relative_error for m in found.values()) < 1e-6


def test_all_modules_have_one_rank_that_servers_take_filled_with_zeros(tiny: EditableModel, tmp_path: Path) -> None:
    found = write_adapter(edited(tiny), tmp_path, base="tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"]) == (8, 8)
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for m in found:
        a, b = (tensors[f"base_model.model.{m.module}.lora_{side}.weight"] for side in "AB")
        assert a.shape[0] == b.shape[1] == 8
        assert a[m.rank :].count_nonzero() == b[:, m.rank :].count_nonzero() == 0
        assert a[: m.rank].count_nonzero() and b[:, : m.rank].count_nonzero()


def test_a_rank_beyond_those_of_servers_is_refused_unless_it_is_cut() -> None:
    assert [served_rank({"m": n}) for n in (1, 8, 9, 257, 512)] == [8, 8, 16, 320, 512]
    with pytest.raises(UnsupportedModel, match=r"^m has an update of rank 513, .*up to rank 512; give --max-rank N"):
        served_rank({"a": 3, "m": 513})


def test_a_module_that_the_base_does_not_have_is_refused_by_name(tiny: EditableModel) -> None:
    """Servers skip it without a word."""
    name = out_name(tiny, 1).removesuffix(".weight")
    good = {f"base_model.model.{name}.lora_{side}.weight": t for side, t in (("A", randn(8, 96)), ("B", randn(32, 8)))}
    check_modules(tiny, good)
    other = {key.replace(".mlp.", ".ffn."): tensor for key, tensor in good.items()}
    with pytest.raises(UnsupportedModel, match=r"changes \S+\.1\.ffn\.\S+ of shape \(32, 96\), which it does not have"):
        check_modules(tiny, other)
    turned = {key: tensor.t() for key, tensor in zip(good, reversed(good.values()), strict=True)}
    with pytest.raises(UnsupportedModel, match=r"of shape \(96, 32\), which is"):
        check_modules(tiny, turned)


@pytest.mark.parametrize("name", SHAPES)
def test_an_adapter_of_any_architecture_names_modules_of_its_own_class(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    shape = model.parameter(out_name(model, 1)).shape
    wide, deep = shape if model.anatomy.orientation == "out_in" else shape[::-1]
    push(model, {out_name(model, 1): LowRank(randn(wide, 2), randn(deep, 2))})
    (found,) = write_adapter(model, tmp_path, base=name)
    assert found.rank == 2


def test_a_dense_update_is_refused_unless_a_rank_is_given(tiny: EditableModel, tmp_path: Path) -> None:
    push(tiny, {out_name(tiny, 0): Dense(randn(32, 96))})
    with pytest.raises(UnsupportedModel, match="--max-rank"):
        write_adapter(tiny, tmp_path / "adapter", base="tiny")
    assert not (tmp_path / "adapter").exists()


def test_a_higher_rank_leaves_a_smaller_error(tiny: EditableModel, tmp_path: Path) -> None:
    push(tiny, {out_name(tiny, 0): Dense(randn(32, 96))})
    errors = [write_adapter(tiny, tmp_path / str(r), base="tiny", max_rank=r)[0].relative_error for r in (2, 8, 32)]
    assert 1 > errors[0] > errors[1] > 0.1
    assert errors[2] < 1e-6


def test_the_reported_error_is_that_of_the_best_approximation(tiny: EditableModel, tmp_path: Path) -> None:
    delta = randn(32, 96)
    push(tiny, {out_name(tiny, 0): Dense(delta)})
    singular = torch.linalg.svdvals(delta)
    wanted = float(singular[4:].norm() / singular.norm())
    assert write_adapter(tiny, tmp_path / "a", base="t", max_rank=4)[0].relative_error == pytest.approx(wanted, rel=1e-4)


def test_more_columns_than_the_weight_has_are_folded_without_loss(tiny: EditableModel, tmp_path: Path) -> None:
    push(tiny, *({out_name(tiny, 2): LowRank(randn(32, 9, seed=i), randn(96, 9, seed=50 + i))} for i in range(5)))
    found = write_adapter(tiny, tmp_path / "adapter", base="tiny")
    assert found == [AdaptedModule(found[0].module, 32, found[0].relative_error)]
    assert found[0].relative_error < 1e-6


def test_a_memory_is_refused_with_the_form_that_fits(tiny: EditableModel, tmp_path: Path) -> None:
    site = tiny.anatomy.mlp.format(layer=1)
    tiny.push(MemoryPatch(site, 0, randn(2, 32), randn(2, 32), torch.ones(2), [(1, 2), (3,)], ["r", "s"], []))
    with pytest.raises(UnsupportedModel, match=r"memory.*errata ask"):
        write_adapter(tiny, tmp_path / "adapter", base="tiny")


def test_an_update_of_the_embedding_is_refused_by_name(tmp_path: Path) -> None:
    tiny = tiny_model("gpt2")
    shape = tiny.parameter("transformer.wte.weight").shape
    push(tiny, {"transformer.wte.weight": LowRank(randn(shape[0], 1), randn(shape[1], 1))})
    with pytest.raises(UnsupportedModel, match=r"transformer\.wte\.weight"):
        write_adapter(tiny, tmp_path / "adapter", base="tiny")


def test_a_model_without_edits_has_no_adapter(tiny: EditableModel, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no weight update"):
        write_adapter(tiny, tmp_path / "adapter", base="tiny")
