"""The tiny Llama as a `.gguf` file, written with the `gguf` package as llama.cpp's converter writes one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize

from tests.support import tiny_model

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
CONTROL, NORMAL = 3, 1
Values = Callable[[GGUFWriter], None]


def write_gguf(
    path: Path,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = "llama",
    without: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
    values: Values = lambda _: None,
) -> Path:
    """Write `tiny_model("llama")`.

    Args:
        kind: of all matrices; vectors stay float32, as everywhere.
        without: names of the file's tensors to leave out.
        extra: names of tensors to add.
        values: adds metadata.
    """
    writer = GGUFWriter(path, architecture)
    _describe(writer)
    values(writer)
    for name, tensor in tensors().items():
        if name in without:
            continue
        if tensor.ndim == 1 or kind == GGMLQuantizationType.F32:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, quantize(tensor, kind), raw_dtype=kind)
    for name in extra:
        writer.add_tensor(name, np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors() -> dict[str, np.ndarray]:
    """The tiny Llama's weights under the file's names, rows of queries and keys in ggml's order."""
    hf = tiny_model("llama").hf
    config = hf.config
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    found = {}
    for name, tensor in hf.state_dict().items():
        stem, _, ending = name.rpartition(".")
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(stem.rpartition(".")[2])
        if heads is not None:
            rows = torch.arange(len(tensor)).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
            tensor = tensor[rows]
        found[f"{names.get_name(stem)}.{ending}"] = tensor.numpy().copy()
    return found


def _describe(writer: GGUFWriter) -> None:
    model = tiny_model("llama")
    config = model.hf.config
    writer.add_name("tiny llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    core = json.loads(model.own_tokenizer.backend_tokenizer.to_str())
    special = {token["content"] for token in core["added_tokens"]}
    tokens = sorted(core["model"]["vocab"], key=core["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in core["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
