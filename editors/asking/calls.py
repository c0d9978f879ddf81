"""What is asked of a model, and the interface that wraps and models answer it through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Call:
    """Prompts with continuations to be scored by teacher forcing; an empty continuation asks for the next token only."""

    prompts: tuple[str, ...]
    continuations: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.continuations):
            raise ValueError(f"{len(self.prompts)} prompts with {len(self.continuations)} continuations")

    def select(self, rows: Sequence[int]) -> Call:
        return Call(tuple(self.prompts[i] for i in rows), tuple(self.continuations[i] for i in rows))


@dataclass(frozen=True)
class LogitBatch:
    """Logits of some rows of a call, in the order of `rows`.

    Attributes:
        rows: indices into the call.
        ids: continuation token ids of each row.
        logits: (sum over rows of len(ids) + 1, vocab): the prediction of every continuation token and of the one after.
    """

    rows: list[int]
    ids: list[list[int]]
    logits: Tensor


@dataclass(frozen=True)
class Generation:
    """Options of one generation; the seed matters only when sampling."""

    max_new_tokens: int
    sample: bool = False
    seed: int = 0
    use_cache: bool = True


class Runner(Protocol):
    """Answers calls. The plain model is one; an editor that changes the call (ICE, SERAC) wraps another."""

    def logits(self, call: Call) -> Iterator[LogitBatch]: ...

    def generate(self, prompts: Sequence[str], options: Generation) -> list[str]: ...


@dataclass
class PromptPositions:
    """Where each row's last prompt token is, in tokens of the whole sequence, for hooks that act on it.

    `offset` is how many tokens the KV cache already holds, kept up by the model before every forward pass.
    """

    last_prompt: Tensor
    prompt_mask: Tensor | None = None
    offset: int = field(default=0)

    def local(self) -> Tensor:
        """(rows,) index in the current input; negative where the prompt's last token is in the cache already."""
        return self.last_prompt - self.offset
