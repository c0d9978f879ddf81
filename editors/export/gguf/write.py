"""A plain Hugging Face folder as one `.gguf` file: weights, settings of the model, tokenizer and chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType, get_tensor_name_map
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from editors.export.formats import GgufType
from editors.export.gguf.families import Family, describe, family_of, rope_factors
from editors.export.gguf.tensors import ROPE_FACTORS, Placed, converted, place
from editors.export.gguf.vocabulary import describe_tokenizer
from editors.loading import check_folder
from editors.stored_tensors import StoredTensors
from warehouse.whole_files import whole_file

FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "F16": LlamaFileType.MOSTLY_F16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
}


@dataclass(frozen=True)
class GgufWritten:
    """A file that was written. `wider`: matrices that stayed float16 because no whole blocks make up their rows."""

    architecture: str
    num_tensors: int
    num_bytes: int
    wider: tuple[str, ...]


def write_gguf(folder: Path, path: Path, kind: GgufType = "F32", *, source: str = "") -> GgufWritten:
    """Write a plain Hugging Face folder as one file, which is there whole or not at all.

    Args:
        folder: config.json, safetensors, tokenizer.json; what is widened says so in its config.json.
        path: gets the name; what had it is replaced.
        source: kept in the header (`general.description`) for whoever finds the file.

    Raises:
        UnsupportedModel: the folder is not whole, or llama.cpp would run another model than it holds.
        OSError: the file cannot be written.
    """
    check_folder(folder)
    config: Any = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    family = family_of(config)
    weights = StoredTensors(folder)
    names = get_tensor_name_map(family.arch, config.num_hidden_layers)
    placed = place(weights, family, config, names, GGMLQuantizationType[kind])
    factors = rope_factors(config)
    with whole_file(path) as fresh:
        writer = GGUFWriter(fresh, family.name)
        writer.add_type("model")
        writer.add_name(path.stem)
        if source:
            writer.add_description(source)
        writer.add_file_type(FILE_TYPES[kind])
        if kind == "Q8_0":
            writer.add_quantization_version(GGML_QUANT_VERSION)
        describe(writer, family, config)
        describe_tokenizer(writer, tokenizer, config.vocab_size, _ends(folder, config, tokenizer))
        try:
            _write(writer, placed, weights, family, config, factors)
        finally:
            writer.close()
    return GgufWritten(
        architecture=family.name,
        num_tensors=len(placed) + (factors is not None),
        num_bytes=path.stat().st_size,
        wider=tuple(t.source for t in placed if t.kind.name == "F16" and kind != "F16"),
    )


def _write(
    writer: GGUFWriter, placed: list[Placed], weights: StoredTensors, family: Family, config: Any, factors: list[float] | None
) -> None:
    """Header and table first, then one tensor at a time, so that a large model is never in memory."""
    if factors is not None:
        turned = np.array(factors, dtype=np.float32)
        writer.add_tensor_info(ROPE_FACTORS, turned.shape, turned.dtype, turned.nbytes)
    for tensor in placed:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.num_bytes, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(turned)
    for tensor in placed:
        writer.write_tensor_data(converted(weights[tensor.source], tensor, family, config))


def _ends(folder: Path, config: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: those of the generation settings, the tokenizer's own first."""
    ends: list[int] = []
    settings = folder / "generation_config.json"
    said = GenerationConfig.from_pretrained(folder).eos_token_id if settings.exists() else config.eos_token_id
    for token in (tokenizer.eos_token_id, *(said if isinstance(said, list) else [said])):
        if isinstance(token, int) and token not in ends:
            ends.append(token)
    return ends
