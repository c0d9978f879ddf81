"""Checkpoints that are not whole: each refused in one line that names the file or tensor and the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from editors.errors import UnsupportedModel
from editors.model import EditableModel
from tests.support import tiny_model

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def saved(folder: Path, **options: Any) -> Path:
    model = tiny_model()
    hf: Any = model.hf
    hf.save_pretrained(folder, **options)
    model.own_tokenizer.save_pretrained(folder)
    return folder


def same_weights(model: EditableModel) -> bool:
    own = tiny_model()
    return all(torch.equal(own.parameter(name), model.parameter(name)) for name in own.parameter_names())


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["transformer.h.1.mlp.c_proj.weight"]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def without_a_prefix(folder: Path) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def with_a_tensor(folder: Path) -> None:
    save_file({**load_file(folder / WEIGHTS), "value_head.weight": torch.ones(3)}, folder / WEIGHTS, {"format": "pt"})


def with_another_shape(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "transformer.ln_f.weight": torch.ones(33)}, folder / WEIGHTS, {"format": "pt"})


def with_fewer_layers(folder: Path) -> None:
    configured(folder, n_layer=3)


def with_more_layers(folder: Path) -> None:
    configured(folder, n_layer=5)


def configured(folder: Path, **values: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def pointer(name: str) -> Callable[[Path], None]:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"

    def damage(folder: Path) -> None:
        (folder / name).write_text(text)

    return damage


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def small_embedding(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][:300].clone()
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    configured(folder, vocab_size=300)


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a tensor missing": (without_a_tensor, r"lacks tensors .*transformer\.h\.1\.mlp\.c_proj\.weight"),
    "all names prefixed": (without_a_prefix, r"transformer\.|module\."),
    "a tensor too many": (with_a_tensor, r"does not know: value_head\.weight"),
    "another shape": (with_another_shape, r"another shape .*transformer\.ln_f\.weight \(\(33,\), not \(32,\)\)"),
    "fewer layers": (with_fewer_layers, r"does not know: transformer\.h\.3\."),
    "more layers": (with_more_layers, r"lacks tensors .*transformer\.h\.4\."),
    "weights cut off": (cut(WEIGHTS, 0.7), r"model\.safetensors has .* bytes where its header says"),
    "weights cut off in the header": (cut(WEIGHTS, 0.002), r"model\.safetensors is no safetensors"),
    "weights empty": (cut(WEIGHTS, 0), r"model\.safetensors is no safetensors"),
    "config cut off": (cut(CONFIG, 0.5), r"config\.json is not JSON"),
    "tokenizer cut off": (cut("tokenizer.json", 0.5), r"tokenizer"),
    "weights a pointer": (pointer(WEIGHTS), r"model\.safetensors is a large-file pointer.*git lfs pull"),
    "tokenizer a pointer": (pointer("tokenizer.json"), r"tokenizer\.json is a large-file pointer"),
    "config a pointer": (pointer(CONFIG), r"config\.json is a large-file pointer"),
    "no weights": (gone(WEIGHTS), "no weights"),
    "no config": (gone(CONFIG), r"no config\.json"),
    "no tokenizer": (gone("tokenizer.json"), "tokenizer"),
    "quantised": (lambda f: configured(f, quantization_config={"quant_method": "gptq", "bits": 4}), r"quantised \(gptq.*plain"),
    "quantised somehow": (lambda f: configured(f, quantization_config={"quant_method": "zip9"}), r"quantised \(zip9"),
    "architecture unknown": (lambda f: configured(f, model_type="nonesuch", architectures=["N"]), "nonesuch"),
    "embedding too small": (small_embedding, r"has 420 tokens, the embedding 300 rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_that_is_not_whole_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    damage, words = CASES[case]
    damage(saved(tmp_path / "base"))
    with pytest.raises(UnsupportedModel, match=words) as refusal:
        EditableModel.from_pretrained(str(tmp_path / "base"))
    assert "\n" not in str(refusal.value)
    assert "base" in str(refusal.value)


def test_a_missing_and_a_cut_off_shard_are_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "base", max_shard_size="60KB")
    assert same_weights(EditableModel.from_pretrained(str(folder)))
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    cut(shards[1].name, 0.6)(folder)
    with pytest.raises(UnsupportedModel, match=f"{shards[1].name} has"):
        EditableModel.from_pretrained(str(folder))
    shards[1].unlink()
    with pytest.raises(UnsupportedModel, match=f"lacks {shards[1].name}"):
        EditableModel.from_pretrained(str(folder))


@pytest.mark.parametrize("name", ["{}/nothing", "./nothing", "~/nothing-here", "a/b/c", "{}/file"])
def test_a_folder_that_is_not_there_is_said_without_asking_a_hub(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnsupportedModel, match=r"model folder .*(is not there|is a file).*model\.name"):
        EditableModel.from_pretrained(name.format(tmp_path))


@pytest.mark.parametrize("beside", [False, True])
def test_an_adapter_is_refused_with_the_way_to_merge_it(beside: bool, tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    adapted = get_peft_model(tiny_model().hf, LoraConfig(r=2, target_modules=["c_proj"], task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(str(base if beside else tmp_path / "adapter"))
    with pytest.raises(UnsupportedModel, match=r"PEFT adapter.*merge_and_unload"):
        EditableModel.from_pretrained(str(base if beside else tmp_path / "adapter"))


def test_buffers_of_older_releases_are_no_fault(tmp_path: Path) -> None:
    folder = saved(tmp_path / "base")
    old = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "transformer.h.0.attn.masked_bias": torch.ones(1)}
    save_file({**load_file(folder / WEIGHTS), **old}, folder / WEIGHTS, {"format": "pt"})
    assert same_weights(EditableModel.from_pretrained(str(folder)))


def test_a_hub_id_is_read_at_its_revision_with_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's cache, as after a download; nothing is asked of a network (tests/conftest.py)."""
    cached = tmp_path / "hub" / "models--someone--tiny"
    saved(cached / "snapshots" / ("a" * 40), max_shard_size="60KB")
    (cached / "refs").mkdir()
    (cached / "refs" / "v1").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = EditableModel.from_pretrained("someone/tiny", revision="v1")
    assert same_weights(model) and (model.name, model.revision) == ("someone/tiny", "v1")
    with pytest.raises(UnsupportedModel, match=r"cannot load model 'someone/tiny' \(revision v2\)") as refusal:
        EditableModel.from_pretrained("someone/tiny", revision="v2")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_without_a_dtype_a_checkpoint_is_read_as_it_is_stored(key: str | None, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, dtype)
    config = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))
    said = config.pop("dtype")
    (tmp_path / CONFIG).write_text(json.dumps(config | ({key: said} if key else {})), encoding="utf-8")
    model = EditableModel.from_pretrained(str(tmp_path), dtype=None)
    assert {p.dtype for p in model.hf.parameters()} == {dtype}
    # One base, whichever way its dtype was asked for.
    assert model.base_digest == EditableModel.from_pretrained(str(tmp_path), dtype=dtype).base_digest


def test_a_stored_dtype_that_nothing_edits_is_refused_by_name(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path, torch.float64)
    with pytest.raises(UnsupportedModel, match=r"stored in float64.*set model\.dtype to float32"):
        EditableModel.from_pretrained(str(tmp_path), dtype=None)
    assert same_weights(EditableModel.from_pretrained(str(tmp_path)))
