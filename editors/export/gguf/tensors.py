"""Tensors of a Hugging Face folder under the names and in the order of rows that llama.cpp has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, TensorNameMap
from gguf.quants import quantize
from torch import Tensor

from editors.errors import UnsupportedModel
from editors.export.gguf.families import Family
from editors.loading import OLD_BUFFERS
from editors.stored_tensors import StoredTensors

HEAD = "lm_head.weight"
#: Modules of GPT-2 whose weights stand (in, out).
IN_OUT = ("c_attn", "c_proj", "c_fc")
ROPE_FACTORS = "rope_freqs.weight"
POSITIONS = "position_embd.weight"
F32, F16, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0


@dataclass(frozen=True)
class Placed:
    """A tensor of the file: its `name`, its `source` in the folder, the `kind` of its numbers, its `shape`, rows first."""

    name: str
    source: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // block * size


def place(
    weights: StoredTensors, family: Family, config: Any, names: TensorNameMap, kind: GGMLQuantizationType
) -> list[Placed]:
    """Where each tensor of a folder goes; matrices become `kind`, vectors and positions stay float32.

    Rows that no whole number of blocks makes up stay float16.

    Raises:
        UnsupportedModel: a tensor that llama.cpp has no place for.
    """
    found = []
    for source in weights:
        if source.endswith(OLD_BUFFERS) or (source == HEAD and config.tie_word_embeddings):
            continue
        stem, _, ending = source.rpartition(".")
        name = names.get_name(stem)
        last = stem.rpartition(".")[2]
        if name is None or ending not in ("weight", "bias") or (ending == "bias" and last not in family.biases):
            raise UnsupportedModel(
                f"tensor {source} has no place in a {family.name} of llama.cpp, and without it the file would be another "
                "model; export with --format hf"
            )
        shape = weights.shape(source)
        if last in IN_OUT and ending == "weight":
            shape = shape[::-1]
        called = f"{name}.{ending}"
        found.append(Placed(called, source, _kind(called, shape, kind), shape))
    return found


def converted(tensor: Tensor, placed: Placed, family: Family, config: Any) -> np.ndarray:
    """A tensor's numbers as the file has them; blocks and bfloat16 as bytes.

    Raises:
        UnsupportedModel: a number that the kind cannot hold.
    """
    stem, _, ending = placed.source.rpartition(".")
    last = stem.rpartition(".")[2]
    tensor = tensor.float()
    if last in IN_OUT and ending == "weight":
        tensor = tensor.t()
    if family.interleaved and last in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if last == "q_proj" else config.num_key_value_heads
        tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    if family.shifted_norms and last.endswith("norm"):
        tensor = tensor + 1
    numbers = tensor.contiguous().numpy()
    if placed.kind == F32:
        found = numbers
    elif placed.kind == F16:
        with np.errstate(over="ignore"):
            found = numbers.astype(np.float16)
        largest = float(np.abs(numbers).max(initial=0.0))
        if not np.isfinite(found).all():
            raise UnsupportedModel(
                f"{placed.source} has a number of size {largest:.3g}, beyond float16's 65,504; give --type BF16 or F32"
            )
    else:
        found = quantize(numbers, placed.kind)
    return found


def _kind(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) < 2 or name == POSITIONS:
        return F32
    block, _ = GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % block == 0 else F16
