"""Answers by the row that was asked and by the view that it had of the slots: none, or which open at which token, how far."""

from __future__ import annotations

import struct
from collections.abc import ItemsView, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from editors.proof.sealed import read_sealed, write_sealed
from editors.proof.states import NAME
from warehouse.questions import Answer

#: Bytes of a key: row, where its continuation starts, view.
KEY = 2 * NAME + 4
#: Answers of one file, before the next one is begun; of one answer some 100 bytes.
ANSWERS_OF_A_FILE = 50_000


def answer_key(row: bytes, start: int, view: bytes) -> bytes:
    """Under which an answer is kept."""
    return row + struct.pack("<I", start) + view


class KeptAnswers:
    """Answers of one base on one machine; in memory, and on disk after `save`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[bytes, Answer] = {}
        self._fresh: list[bytes] = []
        #: The file that grows, and what is in it.
        self._last: tuple[int, list[bytes]] = (0, [])
        for number, path in self._files():
            keys = self._read(path)
            self._last = (number, keys)

    def get(self, key: bytes) -> Answer | None:
        return self._held.get(key)

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer; one that is kept already stays as it is."""
        if key not in self._held:
            self._held[key] = answer
            self._fresh.append(key)

    def items(self) -> ItemsView[bytes, Answer]:
        """Everything that is kept, by key."""
        return self._held.items()

    def save(self) -> None:
        """Write what is new: the last file grows until it is full."""
        while self._fresh:
            number, keys = self._last
            if len(keys) >= ANSWERS_OF_A_FILE:
                number, keys = number + 1, []
            room = ANSWERS_OF_A_FILE - len(keys)
            keys, self._fresh = keys + self._fresh[:room], self._fresh[room:]
            write_sealed(self._folder / f"{number:06}.answers", _packed({key: self._held[key] for key in keys}))
            self._last = (number, keys)

    def prune(self, limit: int) -> None:
        """Forget the oldest files until at most `limit` bytes are left."""
        files = [path for _, path in self._files()]
        while files and sum(path.stat().st_size for path in files) > limit:
            files.pop(0).unlink()

    def _files(self) -> list[tuple[int, Path]]:
        return sorted((int(path.stem), path) for path in self._folder.glob("*.answers"))

    def _read(self, path: Path) -> list[bytes]:
        held = read_sealed(path)
        if held is None:
            return []
        found = _unpacked(held)
        self._held |= found
        return list(found)


def _packed(answers: Mapping[bytes, Answer]) -> dict[str, Tensor]:
    told = list(answers.values())
    texts = [answer.argmax_text.encode("utf-8", "surrogatepass") for answer in told]
    numbers = [(a.token_accuracy, a.log_prob, a.margin) for a in told]
    return {
        "keys": torch.from_numpy(np.frombuffer(b"".join(answers), dtype=np.uint8).copy()),
        "exact": torch.tensor([a.exact for a in told]),
        "numbers": torch.tensor(numbers, dtype=torch.float64),
        "num_tokens": torch.tensor([a.num_tokens for a in told], dtype=torch.int32),
        "ends": torch.tensor(np.cumsum([len(text) for text in texts]), dtype=torch.int64),
        "texts": torch.from_numpy(np.frombuffer(b"".join(texts), dtype=np.uint8).copy()),
    }


def _unpacked(held: Mapping[str, Tensor]) -> dict[bytes, Answer]:
    keys, texts = held["keys"].numpy().tobytes(), held["texts"].numpy().tobytes()
    found, begin = {}, 0
    columns = (held["exact"].tolist(), held["numbers"].tolist(), held["num_tokens"].tolist(), held["ends"].tolist())
    for at, (exact, (accuracy, log_prob, margin), num_tokens, end) in enumerate(zip(*columns, strict=True)):
        text = texts[begin:end].decode("utf-8", "surrogatepass")
        found[keys[at * KEY : (at + 1) * KEY]] = Answer(exact, accuracy, log_prob, margin, text, num_tokens)
        begin = end
    return found
