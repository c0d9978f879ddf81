"""What is kept of one base on one machine, in a folder of the home: safe to kill, to delete and to prune."""

from __future__ import annotations

import fcntl
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from editors.asking.runner import PlainRunner
from editors.asking.steady import LENGTHS_TRIED, POSITIONS_AT_ONCE, TOKENS_PER_GPU_PASS, TOKENS_PER_PASS, is_steady
from editors.model import EditableModel
from editors.patches.slots import SlotBook
from editors.proof.answers import KeptAnswers
from editors.proof.states import KeptStates
from warehouse.digests import digest_of

#: Of what proves an answer; another release that opens slots or asks otherwise has another, and a folder of its own.
RULES = 1
_ALONE: dict[tuple[str, str, str, int], bool] = {}


class Proofs:
    """States, openings and answers of one base and site.

    Attributes:
        next_log_probs: by row and view, what `next_token_log_probs` said; in memory alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.states, self.answers = KeptStates(folder), KeptAnswers(folder)
        self.next_log_probs: dict[tuple[bytes, bytes], NDArray[np.float32]] = {}

    def save(self, limit: int) -> None:
        """Write what is new, and forget the oldest of what is more than `limit` bytes: states and answers have half each."""
        for kept in (self.states, self.answers):
            kept.save()
            kept.prune(limit // 2)


@contextmanager
def kept_proofs(root: Path, model: EditableModel, site: str, limit: int) -> Iterator[Proofs | None]:
    """What is kept of the model's base; None where another process works with it, or nothing may be kept.

    What is new is written at the end, whatever ends it: each answer is right by itself.

    Args:
        root: holds a folder for each base.
        limit: bytes on the disk; 0: nothing is kept.
    """
    if not limit:
        yield None
        return
    folder = proof_folder(root, model, site)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        proofs = Proofs(folder)
        try:
            yield proofs
        finally:
            proofs.save(limit)


def proof_folder(root: Path, model: EditableModel, site: str) -> Path:
    """Where answers of a base lie that hold on this machine: with another processor, library or thread count they differ."""
    backend: Any = getattr(model.tokenizer, "backend_tokenizer", None)
    device = model.device
    name = digest_of(
        ["proofs", RULES],
        [model.base_digest, site, str(model.hf.dtype), str(getattr(model.hf.config, "_attn_implementation", ""))],
        "" if backend is None else backend.to_str(),
        [torch.__version__, transformers.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
        [platform.machine(), _processor(), torch.cuda.get_device_name(device) if device.type == "cuda" else device.type],
        [TOKENS_PER_PASS, TOKENS_PER_GPU_PASS, POSITIONS_AT_ONCE, list(LENGTHS_TRIED)],
    )
    return root / name[:32]


def asked_alone(model: EditableModel, book: SlotBook) -> bool:
    """Whether each row has to run by itself here, because its place in a pass shows; tried once a process. See `is_steady`.

    Args:
        book: the slots of the model, which say nothing of it and keep shut meanwhile.
    """
    key = (model.base_digest, str(model.hf.dtype), str(model.device), torch.get_num_threads())
    if key not in _ALONE:
        with book.silenced():
            _ALONE[key] = not is_steady(model, PlainRunner(model))
    return _ALONE[key]


def _processor() -> str:
    """The processor's name, where the system tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
