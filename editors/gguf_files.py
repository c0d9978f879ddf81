"""A model in one `.gguf` file: its header is held against the file's size before anything is built, and every tensor is used.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The weights themselves are read by transformers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from gguf import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map
from transformers import PreTrainedModel

from editors.errors import UnsupportedModel

SUFFIX = ".gguf"
MAGIC, VERSIONS = b"GGUF", (2, 3)
STRING, ARRAY = 8, 9
#: Metadata types of a fixed width, as `struct` spells them.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
ALIGNMENT = 32
MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class GgufHeader:
    """What a file says of itself. `values` leaves arrays (the vocabulary) out; `tensors` are names in the file's order."""

    values: Mapping[str, Any]
    tensors: tuple[str, ...]

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))


def gguf_of(place: Path) -> Path | None:
    """The `.gguf` file that a path names: itself, or the only one in a folder without safetensors; None where it is neither.

    Raises:
        UnsupportedModel: the folder has several of them and nothing else to load.
    """
    if place.is_file():
        return place if place.suffix.lower() == SUFFIX else None
    if not place.is_dir():
        return None
    found = sorted(p for p in place.iterdir() if p.suffix.lower() == SUFFIX)
    if not found or any(place.glob("*.safetensors")):
        return None
    if len(found) > 1:
        names = ", ".join(p.name for p in found[:5])
        raise UnsupportedModel(f"{place} has {len(found)} .gguf files ({names}); set model.name to the one that is meant")
    return found[0]


def read_header(path: Path) -> GgufHeader:
    """Read a file's metadata and its table of tensors; of the weights only that they are all there.

    Raises:
        UnsupportedModel: no GGUF, one that is cut off, of another version or byte order, one part of several, or one that
            says of the model what transformers does not read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        cursor = _Cursor(path, file, size)
        if cursor.take(4) != MAGIC:
            raise UnsupportedModel(f"{path} is no GGUF file: it does not begin with GGUF; copy or download it again")
        (version,) = cursor.unpack("I")
        if version not in VERSIONS:
            what = "is written for big-endian machines" if version & 0xFFFF == 0 else f"is GGUF of version {version}"
            raise UnsupportedModel(f"{path} {what}; version 2 or 3 in little-endian order is read: convert it again")
        num_tensors, num_values = cursor.unpack("QQ")
        values: dict[str, Any] = {}
        for _ in range(num_values):
            key = cursor.string()
            value = cursor.value(*cursor.unpack("I"))
            if value is not None:
                values[key] = value
        table = [(cursor.string(), *cursor.tensor()) for _ in range(num_tensors)]
    header = GgufHeader(values, tuple(name for name, _, _ in table))
    _check_values(path, header)
    alignment = int(values.get("general.alignment", ALIGNMENT)) or ALIGNMENT
    start = -(-cursor.at // alignment) * alignment
    for name, offset, length in table:
        if start + offset + length > size:
            raise UnsupportedModel(
                f"{path} is cut off: it has {size:,} bytes, and tensor {name} ends at byte {start + offset + length:,}; "
                "copy or download it again"
            )
    return header


def check_all_used(path: Path, header: GgufHeader, model: PreTrainedModel) -> None:
    """Refuse a file with tensors that the loaded model has no place for: transformers leaves them out without a word.

    Raises:
        UnsupportedModel: naming the first of them.
    """
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == header.architecture)
    names = get_tensor_name_map(kind, int(header.values.get(f"{header.architecture}.block_count", 0)))
    used = set()
    for parameter in model.state_dict():
        stem, _, ending = parameter.rpartition(".")
        used.add(f"{names.get_name(stem)}.{ending}")
    unused = [name for name in header.tensors if name not in used]
    if unused:
        why = (
            "its positions are scaled, and transformers reads that from config.json only"
            if unused == ["rope_freqs.weight"]
            else "without them it is another model"
        )
        raise UnsupportedModel(
            f"{path} has {len(unused)} tensors that a {type(model).__name__} has no place for ({', '.join(unused[:3])}): "
            f"{why}; give the safetensors checkpoint that it was made from"
        )


def _check_values(path: Path, header: GgufHeader) -> None:
    """Refuse what the metadata says and transformers would pass over."""
    if not header.architecture:
        raise UnsupportedModel(f"{path} names no architecture (general.architecture); it holds no language model")
    parts = int(header.values.get("split.count", 0))
    if parts > 1:
        raise UnsupportedModel(
            f"{path} is one of {parts} parts of a model; join them first (`llama-gguf-split --merge FIRST JOINED.gguf`)"
        )
    scaling = str(header.values.get(f"{header.architecture}.rope.scaling.type", "none"))
    if scaling != "none":
        raise UnsupportedModel(
            f"{path} scales its positions ({scaling}), which transformers does not read from a GGUF; give the safetensors "
            "checkpoint that it was made from"
        )


class _Cursor:
    """A file read forwards, never beyond its end."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size, self.at = path, file, size, 0

    def take(self, count: int) -> bytes:
        self._see(count)
        self.at += count
        return self.file.read(count)

    def skip(self, count: int) -> None:
        self._see(count)
        self.at += count
        self.file.seek(count, 1)

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))

    def string(self) -> str:
        (length,) = self.unpack("Q")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged("a text in it is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """A value of the metadata; None for an array, which is passed over."""
        if kind in SCALARS:
            return self.unpack(SCALARS[kind])[0]
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise self._damaged(f"a value in it has the unknown type {kind}")
        inner, count = self.unpack("IQ")
        if inner in SCALARS:
            self.skip(count * struct.calcsize(f"<{SCALARS[inner]}"))
            return None
        for _ in range(count):
            self.value(inner)
        return None

    def tensor(self) -> tuple[int, int]:
        """Offset and length in bytes of the next tensor in the table."""
        (dimensions,) = self.unpack("I")
        if dimensions > MOST_DIMENSIONS:
            raise self._damaged(f"a tensor in it has {dimensions} dimensions")
        shape = self.unpack("Q" * dimensions)
        kind, offset = self.unpack("IQ")
        try:
            elements, length = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise self._damaged(f"a tensor in it has the unknown type {kind}") from None
        return offset, prod(shape) // elements * length

    def _see(self, count: int) -> None:
        if self.at + count > self.size:
            raise UnsupportedModel(
                f"{self.path} is cut off in its header, or damaged: it has {self.size:,} bytes, and what stands at byte "
                f"{self.at:,} goes on to {self.at + count:,}; copy or download it again"
            )

    def _damaged(self, what: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.path} is damaged, or newer than what reads it: {what}; copy or download it again")
