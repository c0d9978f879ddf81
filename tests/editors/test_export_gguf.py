"""A plain folder as one `.gguf` file: its numbers, what its header says, and what is refused. Engines: tests/engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from transformers import LlamaConfig, LlamaForCausalLM

from editors.errors import UnsupportedModel
from editors.export.formats import GgufType
from editors.export.gguf import write as writing
from editors.export.gguf.write import write_gguf
from editors.model import EditableModel
from tests.architectures import plain_model
from tests.support import tiny_model, tiny_tokenizer
from tests.tokenizers import family

NARROW: dict[GgufType, Callable[[torch.Tensor], torch.Tensor]] = {
    "F32": lambda t: t,
    "BF16": lambda t: t.bfloat16().float(),
    "F16": lambda t: t.half().float(),
    "Q8_0": lambda t: torch.from_numpy(dequantize(quantize(t.numpy(), GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0)),
}


def saved(hf: Any, folder: Path, tokenizer: Any = None) -> Path:
    hf.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def header_of(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize("kind", NARROW)
def test_read_back_it_has_the_numbers_of_the_type(kind: GgufType, tmp_path: Path) -> None:
    own = tiny_model("llama")
    own.save_pretrained(tmp_path / "plain")
    write_gguf(tmp_path / "plain", tmp_path / "tiny.gguf", kind)
    found = EditableModel.from_pretrained(str(tmp_path / "tiny.gguf"))
    assert found.parameter_names() == own.parameter_names()
    for name in own.parameter_names():
        wanted = own.parameter(name)
        assert torch.equal(found.parameter(name), wanted if wanted.dim() == 1 else NARROW[kind](wanted)), name


def test_a_matrix_whose_rows_are_no_whole_blocks_stays_float16_and_is_told(tmp_path: Path) -> None:
    folder = saved(plain_model("qwen3", intermediate_size=80), tmp_path)
    found = write_gguf(folder, tmp_path / "q.gguf", "Q8_0")
    assert found.wider == tuple(f"model.layers.{i}.mlp.down_proj.weight" for i in range(4))
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "q.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16" and kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert header_of(tmp_path / "q.gguf")["qwen3.feed_forward_length"] == 80


def test_shards_are_one_file_and_it_says_where_it_comes_from(tmp_path: Path) -> None:
    hf = tiny_model("llama").hf
    hf.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    write_gguf(tmp_path / "shards", tmp_path / "a.gguf", source="checkpoint abc")
    write_gguf(saved(hf, tmp_path / "whole"), tmp_path / "b.gguf", source="checkpoint abc")
    shards, whole = (GGUFReader(tmp_path / name).tensors for name in ("a.gguf", "b.gguf"))
    assert {t.name: t.data.tobytes() for t in shards} == {t.name: t.data.tobytes() for t in whole}
    assert header_of(tmp_path / "a.gguf")["general.description"] == "checkpoint abc"


def test_all_tokens_that_end_an_answer_are_told(tmp_path: Path) -> None:
    folder = saved(tiny_model("llama").hf, tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 0, 7]}), encoding="utf-8")
    write_gguf(folder, tmp_path / "a.gguf")
    found = header_of(tmp_path / "a.gguf")
    assert [found[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")] == [0, 5, 7]


def test_more_end_tokens_than_a_header_names_are_refused(tmp_path: Path) -> None:
    folder = saved(tiny_model("llama").hf, tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 0, 7, 9]}), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match=r"ends at any of 4 tokens .*names 3"):
        write_gguf(folder, tmp_path / "a.gguf")


def test_windows_that_llama_cpp_lacks_end_the_context(tmp_path: Path) -> None:
    """Inside one window full attention is the same."""
    write_gguf(saved(plain_model("mistral"), tmp_path), tmp_path / "a.gguf")
    assert header_of(tmp_path / "a.gguf")["llama.context_length"] == 6
    write_gguf(saved(plain_model("gemma2"), tmp_path / "gemma"), tmp_path / "b.gguf")
    found = header_of(tmp_path / "b.gguf")
    assert (found["gemma2.context_length"], found["gemma2.attention.sliding_window"]) == (128, 6)


def test_what_is_killed_on_the_way_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tiny_model("llama").hf, tmp_path / "plain")
    (tmp_path / "a.gguf").write_bytes(b"before")
    own, calls = writing.converted, []

    def fails(*given: Any) -> np.ndarray:
        calls.append(given)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        return own(*given)

    monkeypatch.setattr(writing, "converted", fails)
    with pytest.raises(OSError, match="No space"):
        write_gguf(folder, tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "plain"]


# ------------------------------------------------------------ refused


def rope(**entries: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, **entries}}


GEMMA: dict[str, Any] = {"final_logit_softcapping": None, "num_hidden_layers": 6, "layer_types": None}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a class that is not known": ("olmo2", {}, r"no \.gguf is written of Olmo2ForCausalLM; it is of Llama.*--format hf"),
    "another activation": ("qwen3", {"hidden_act": "gelu"}, "its activation = 'gelu'.*every qwen3 with 'silu'"),
    "another divisor": ("gemma2", {"query_pre_attn_scalar": 16}, r"query_pre_attn_scalar = 16, .* with 8"),
    "a cap that is left out": ("gemma3_text", {**GEMMA, "final_logit_softcapping": 6.0}, "final_logit_softcapping = 6.0"),
    "layers in no order": (
        "gemma2", {"layer_types": ["full_attention", *["sliding_attention"] * 3]}, "every n-th layer sees the whole text"
    ),
    "a bias without a place": ("qwen3", {"attention_bias": True}, r"tensor \S+_proj\.bias has no place in a qwen3"),
    "positions that change with length": ("mistral", rope(rope_type="dynamic", factor=2.0), "rope_type dynamic"),
    "half of the coordinates turned": ("qwen3", rope(rope_type="default", partial_rotary_factor=0.5), "partial_rotary_factor"),
    "yarn of its own": (
        "qwen3", rope(rope_type="yarn", factor=2.0, original_max_position_embeddings=64, beta_fast=16), "beta_fast 16"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_would_be_another_one_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    shape, entries, words = MODELS[case]
    folder = saved(plain_model(shape, **entries), tmp_path / "plain")
    with pytest.raises(UnsupportedModel, match=words) as refusal:
        write_gguf(folder, tmp_path / "a.gguf")
    assert "\n" not in str(refusal.value)
    assert [p.name for p in tmp_path.iterdir()] == ["plain"]


TOKENIZERS = {
    "gpt2-prefix": r'a text is split by \{"type": "ByteLevel", "add_prefix_space": true',
    "unigram": "of the kind Unigram",
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_that_would_split_otherwise_is_refused(kind: str, tmp_path: Path) -> None:
    tokenizer = family(kind)
    hf = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    )
    with pytest.raises(UnsupportedModel, match=TOKENIZERS[kind]):
        write_gguf(saved(hf, tmp_path / "plain", tokenizer), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_ranks_of_merges_that_no_score_says_are_refused(tmp_path: Path) -> None:
    tokenizer = family("llama2")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    merges, vocab = state["model"]["merges"], state["model"]["vocab"]
    whole = [(left + right, left) for left, right in merges if len(left + right) > 2]
    text = next(text for text, left in whole if len(left) > 1 and text[1:] in vocab)
    # The same token from another pair, behind all others.
    merges.append([text[0], text[1:]])
    hf = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    )
    folder = saved(hf, tmp_path / "plain", tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match="in two ways with other merges between them"):
        write_gguf(folder, tmp_path / "a.gguf")


def test_a_number_beyond_float16_is_refused_by_its_tensor(tmp_path: Path) -> None:
    hf = plain_model("qwen3")
    with torch.no_grad():
        hf.model.layers[1].mlp.up_proj.weight[3, 4] = 7e4
    folder = saved(hf, tmp_path / "plain")
    with pytest.raises(
        UnsupportedModel, match=r"layers\.1\.mlp\.up_proj\.weight has a number of size 7e\+04.*--type BF16 or F32"
    ):
        write_gguf(folder, tmp_path / "a.gguf", "F16")
    write_gguf(folder, tmp_path / "a.gguf", "BF16")
