"""The tensors of a folder's safetensors files, each read when it is asked for: a large model is never in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

INDEX = "model.safetensors.index.json"


class StoredTensors(Mapping[str, Tensor]):
    """A folder's tensors by name, in the order of their names.

    Of a sharded model those that its index names, of any other folder those of all its files.

    Raises:
        SafetensorError: a file is none of the format; when it is made.
    """

    def __init__(self, folder: Path) -> None:
        index = folder / INDEX
        if index.exists():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.safetensors"))
        self._files = [safe_open(folder / name, framework="pt") for name in files]
        self._place = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._place))

    def __contains__(self, name: object) -> bool:
        return name in self._place

    def __len__(self) -> int:
        return len(self._place)

    def __getitem__(self, name: str) -> Tensor:
        return self._place[name].get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the tensor."""
        return tuple(self._place[name].get_slice(name).get_shape())
