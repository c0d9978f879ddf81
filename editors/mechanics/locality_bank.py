"""A bank of texts with what the base predicts on them, and the divergence from it while weights are trained."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from editors.asking.tokens import pad_right
from editors.base import NO_BENCH, Corpus, Editor, EditorConfig, Prepared, Workbench
from editors.mechanics.descent import UpperBlocks, as_stored, upper_blocks
from editors.mechanics.passes import activation_bytes
from editors.mechanics.trace import trace
from editors.model import EditableModel
from editors.views import at_base

#: Texts in one pass of the preparation.
ROWS_PER_PASS = 32
#: What a step may hold at least for the backward pass of some texts through the trained blocks, and as much for their logits.
LEAST_BYTES = 2**25
#: Of a large model that share of its bytes: two of them stay far below the quarter that an edit may take.
SHARE = 1 / 16
#: Copies of a distribution that its divergence and the gradient of that hold at once.
LOGIT_COPIES = 6


class BankConfig(EditorConfig):
    """Settings of a locality bank and its term.

    Attributes:
        gamma: weight of the divergence, in nats per token of the bank.
        bank_size, max_tokens: texts of the locality bank, each cut to so many tokens.
        texts_per_step: how many of them one step reads.
        top_k: tokens of each base distribution that are kept one by one; the rest is one class.
    """

    gamma: NonNegativeFloat = 1.0
    bank_size: PositiveInt = 128
    max_tokens: PositiveInt = 64
    texts_per_step: PositiveInt = 16
    top_k: PositiveInt = 256

    @property
    def bank_key(self) -> str:
        """What the prepared bank depends on: not the optimiser."""
        return f"{self.bank_size}:{self.max_tokens}:{self.top_k}:{self.seed}"


def prepare_bank(model: EditableModel, corpus: Corpus, config: BankConfig) -> Prepared:
    """Draw the bank and keep what the base model predicts at each of its tokens.

    Returns:
        Tensors over all real tokens of the bank, text after text: `ids` (tokens,), `top` (tokens, k) token ids,
        `log_probs` (tokens, k), `log_rest` (tokens,); meta: `texts`, and `lengths` in tokens.

    Raises:
        ValueError: the corpus holds no token.
    """
    texts = sorted(set(corpus.texts))
    random.Random(config.seed).shuffle(texts)
    texts = [t for t in texts[: config.bank_size] if t.strip()]
    if not texts:
        raise ValueError("the corpus holds no token; a locality bank needs text")
    limit = min(config.max_tokens, int(getattr(model.hf.config, "max_position_embeddings", config.max_tokens)))
    rows = [list(ids)[:limit] for ids in model.tokenizer(texts)["input_ids"]]
    parts: dict[str, list[Tensor]] = {"top": [], "log_probs": [], "log_rest": []}
    with at_base(model), torch.no_grad():
        for at in range(0, len(rows), ROWS_PER_PASS):
            ids, mask = pad_right(rows[at : at + ROWS_PER_PASS], model.pad_id)
            final = trace(model, ids, mask).final
            assert final is not None
            log_probs = model.head(final[mask.bool().to(final.device)]).float().log_softmax(-1)
            top = log_probs.topk(min(config.top_k, log_probs.shape[-1])).indices
            kept, rest = split(log_probs, top)
            for name, value in (("top", top.int()), ("log_probs", kept), ("log_rest", rest)):
                parts[name].append(value.cpu())
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    tensors["ids"] = torch.tensor([i for row in rows for i in row])
    return Prepared(tensors, {"texts": texts, "lengths": [len(row) for row in rows]})


def out_of_scope(texts: Sequence[str], subjects: Sequence[str]) -> frozenset[int]:
    """Indices of the texts that name none of the subjects, whatever the case; an empty subject is nobody's name."""
    names = [s.casefold() for s in subjects if s.strip()]
    return frozenset(i for i, text in enumerate(texts) if not any(name in text.casefold() for name in names))


def split(logits: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (rows, k) of the tokens `top`, and (rows,) of all others together.

    Where `top` holds the whole vocabulary the others have -inf.
    """
    whole = logits.logsumexp(-1)
    rest = logits.scatter(-1, top.long(), float("-inf")).logsumexp(-1)
    return logits.gather(-1, top.long()) - whole[:, None], rest - whole


def coarse_kl(base: Tensor, base_rest: Tensor, logits: Tensor, top: Tensor) -> Tensor:
    """KL(base || model) of each row, in nats, over the classes of `split`."""
    if top.shape[-1] == logits.shape[-1]:
        kept = logits.log_softmax(-1).gather(-1, top.long())
        return (base.exp() * (base - kept)).sum(-1)
    kept, rest = split(logits, top)
    return (base.exp() * (base - kept)).sum(-1) + base_rest.exp() * (base_rest - rest)


@dataclass(frozen=True)
class _Part:
    """Some texts of the bank, ready for the trained blocks, with the base's predictions at their real tokens.

    Attributes:
        real: (texts, tokens) no padding.
        text: (real tokens,) which text of the bank a token is of; `top`, `log_probs`, `log_rest` have the same order.
    """

    upper: UpperBlocks
    real: Tensor
    text: Tensor
    top: Tensor
    log_probs: Tensor
    log_rest: Tensor


@dataclass(frozen=True)
class LocalityBank:
    """The penalty of one edit. Groups of texts do not depend on the edit, so their states serve many edits.

    Attributes:
        size: texts in a group; step i reads group i modulo their number.
        allowed: indices of the texts that count.
        states: what the blocks below the trained ones make of each group, filled as groups are read, in pieces of it whose
            backward pass fits into memory.
    """

    model: EditableModel
    prepared: Prepared
    first: int
    gamma: float
    size: int
    allowed: frozenset[int]
    states: dict[int, tuple[_Part, ...]] = field(default_factory=dict)

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """Numbers of the groups with a text that counts."""
        return tuple(sorted({i // self.size for i in self.allowed}))

    @property
    def budget(self) -> int:
        """Bytes that the activations of one piece may hold, and its logits."""
        return max(LEAST_BYTES, int(SHARE * self.model.num_bytes))

    def penalty(self, parameters: Mapping[str, Tensor], step: int) -> Iterator[Tensor]:
        """gamma times the mean divergence over all tokens of this step's texts, as one summand for each piece of them."""
        number = self.groups[step % len(self.groups)]
        if number not in self.states:
            self.states[number] = tuple(self._part(texts) for texts in self._pieces(number))
        counted = [
            torch.tensor([int(i) in self.allowed for i in part.text], device=part.text.device) for part in self.states[number]
        ]
        tokens = sum(int(counts.sum()) for counts in counted)
        rows = max(1, self.budget // (4 * LOGIT_COPIES * self.model.vocab_size))
        for part, counts in zip(self.states[number], counted, strict=True):
            if counts.any():
                yield self._divergence(part, counts, parameters, tokens, rows)

    def _divergence(self, part: _Part, counts: Tensor, parameters: Mapping[str, Tensor], tokens: int, rows: int) -> Tensor:
        """gamma / tokens times the sum of a piece's divergences, its logits taken so many rows at once."""
        top, log_probs, log_rest = part.top[counts], part.log_probs[counts], part.log_rest[counts]

        def some(states: Tensor, own: slice) -> Tensor:
            found = coarse_kl(log_probs[own], log_rest[own], self.model.head(states).float(), top[own])
            return self.gamma * (found.sum() / tokens)

        states = part.upper.run(self.model, as_stored(self.model, parameters))[part.real][counts]
        return _SumOverRows.apply(states, some, rows)

    def _pieces(self, number: int) -> Iterator[range]:
        """A group's texts in their order, cut where the next one's activations would go beyond the budget."""
        lengths, depth = self.prepared.meta["lengths"], self.model.anatomy.num_layers(self.model.hf)
        most_tokens = self.budget // activation_bytes(self.model, depth - self.first)
        start, end = number * self.size, min((number + 1) * self.size, len(lengths))
        for i in range(start + 1, end):
            if (i + 1 - start) * max(lengths[start : i + 1]) > most_tokens:
                yield range(start, i)
                start = i
        yield range(start, end)

    def _part(self, texts: range) -> _Part:
        device, lengths, tensors = self.model.device, self.prepared.meta["lengths"], self.prepared.tensors
        start = sum(lengths[: texts.start])
        span = slice(start, start + sum(lengths[i] for i in texts))
        rows = tensors["ids"][span].split([lengths[i] for i in texts])
        ids, mask = pad_right([row.tolist() for row in rows], self.model.pad_id)
        upper = upper_blocks(self.model, ids, mask, self.first)
        return _Part(
            # The states after the final norm are not read again, and would be as much as all that is.
            replace(upper, final=upper.hidden[..., :0]),
            mask.bool().to(device),
            torch.tensor([i for i in texts for _ in range(lengths[i])], device=device),
            tensors["top"][span].to(device),
            tensors["log_probs"][span].to(device),
            tensors["log_rest"][span].to(device),
        )


class _SumOverRows(torch.autograd.Function):
    """A scalar that is a sum over rows, taken some rows at a time together with its gradient: of what lies between, only
    those rows' stands in memory."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, of: Callable[[Tensor, slice], Tensor], rows: int) -> Tensor:
        gradient, total = torch.empty_like(states), states.new_zeros((), dtype=torch.float32)
        for at in range(0, len(states), rows):
            own = slice(at, at + rows)
            some = states[own].detach().requires_grad_(True)
            with torch.enable_grad():
                value = of(some, own)
            (gradient[own],) = torch.autograd.grad(value, some)
            total += value.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *towards: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * towards[0], None, None


class BankReader:
    """Banks for the edits of one editor; the states below the trained blocks are kept while the model stands as it is."""

    def __init__(self, editor: str) -> None:
        self._editor = editor
        self._seen: tuple[EditableModel, str, Prepared, int, dict[int, tuple[_Part, ...]]] | None = None

    def bank(
        self, model: EditableModel, prepared: Prepared, first: int, config: BankConfig, subjects: Sequence[str]
    ) -> LocalityBank | None:
        """The bank without the texts that name a subject in scope; None where no text is left.

        Args:
            first: the lowest block with a trained weight.
            subjects: of this batch; those of this editor's earlier patches on the model are added.

        Raises:
            ValueError: the preparation is not a locality bank.
        """
        if "log_rest" not in prepared.tensors:
            raise ValueError(f"{self._editor} needs its locality bank, not {sorted(prepared.tensors)}; prepare it first")
        earlier = [s for p in model.patches for s in p.meta.get("note", {}).get(f"{self._editor}_subjects", [])]
        allowed = out_of_scope(prepared.meta["texts"], [*subjects, *earlier])
        if not allowed:
            return None
        seen = self._seen
        if seen is None or seen[0] is not model or seen[1] != model.digest or seen[2] is not prepared or seen[3] != first:
            self._seen = seen = (model, model.digest, prepared, first, {})
        return LocalityBank(model, prepared, first, config.gamma, config.texts_per_step, allowed, seen[4])

    def note(self, subjects: Sequence[str]) -> dict[str, list[str]]:
        """What a patch must remember so that later edits leave its subjects out."""
        return {f"{self._editor}_subjects": list(dict.fromkeys(subjects))}


BankT = TypeVar("BankT", bound=BankConfig)


class BankEditor(Editor[BankT]):
    """What editors that are held back by a locality bank share: its preparation, and one reader for many edits."""

    def __init__(self, config: BankT) -> None:
        super().__init__(config)
        self._reader = BankReader(self.card.name)

    def preparation_key(self) -> str:
        """The bank, not the optimiser."""
        return self.config.bank_key

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """The locality bank; see `prepare_bank`."""
        return prepare_bank(model, corpus, self.config)
