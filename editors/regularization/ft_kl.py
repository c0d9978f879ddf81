"""FT+KL: fine-tuning that keeps the base model's predictions on texts about other things."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from editors.base import NO_BENCH, Corpus, Editor, EditorCard, Prepared, Workbench
from editors.mechanics.second_moment import at_base
from editors.mechanics.trace import trace
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from editors.regularization.descent import (
    PenalisedConfig,
    UpperBlocks,
    as_stored,
    descend,
    layer_of,
    site_parameters,
    upper_blocks,
)
from editors.tokens import pad_right
from warehouse.records import EditBatch

#: Texts in one pass of the preparation.
ROWS_PER_PASS = 32


class FineTuningKlConfig(PenalisedConfig):
    """Attributes:
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


@final
class FineTuningKl(Editor[FineTuningKlConfig]):
    """min NLL(E) + gamma E_{x in O} KL(p_base(.|x) || p(.|x)), x every prefix of the bank's texts.

    The locality term of De Cao et al. 2021 (eq. 2) and Mitchell et al. 2022. Texts that name a subject of this batch,
    or of an FT+KL edit on the model, are in scope and left out.
    """

    config_class = FineTuningKlConfig
    card = EditorCard(
        name="ft_kl", title="FT + KL", family="regularization", patch_kind="weight", paper="arXiv:2104.08164",
        code="zjunlp/EasyEdit (kl_factor of its FT, which the training loop never reads)", needs_preparation=True,
        only_xy=False, scales=False,
        differs="KL at all positions of the bank's texts, from cached base distributions: the top tokens and the remaining "
        "mass as one class, a lower bound of the full KL. Texts that name an edited subject are left out. Preparation is one "
        "forward pass over the bank; no auxiliary model is trained.",
    )  # fmt: skip

    def __init__(self, config: FineTuningKlConfig) -> None:
        super().__init__(config)
        self._seen: tuple[EditableModel, str, Prepared, dict[int, _Part]] | None = None

    def preparation_key(self) -> str:
        """The bank, not the optimiser."""
        c = self.config
        return f"{c.bank_size}:{c.max_tokens}:{c.top_k}:{c.seed}"

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Draw the bank and keep what the base model predicts at each of its tokens.

        Returns:
            Tensors over all real tokens of the bank, text after text: `ids` (tokens,), `top` (tokens, k) token ids,
            `log_probs` (tokens, k), `log_rest` (tokens,); meta: `texts`, and `lengths` in tokens.

        Raises:
            ValueError: the corpus holds no token.
        """
        texts = sorted(set(corpus.texts))
        random.Random(self.config.seed).shuffle(texts)
        texts = [t for t in texts[: self.config.bank_size] if t.strip()]
        if not texts:
            raise ValueError("the corpus holds no token; a locality bank needs text")
        limit = min(self.config.max_tokens, int(getattr(model.hf.config, "max_position_embeddings", self.config.max_tokens)))
        rows = [list(ids)[:limit] for ids in model.tokenizer(texts)["input_ids"]]
        parts: dict[str, list[Tensor]] = {"top": [], "log_probs": [], "log_rest": []}
        with at_base(model), torch.no_grad():
            for at in range(0, len(rows), ROWS_PER_PASS):
                ids, mask = pad_right(rows[at : at + ROWS_PER_PASS], model.pad_id)
                final = trace(model, ids, mask).final
                assert final is not None
                log_probs = model.head(final[mask.bool().to(final.device)]).float().log_softmax(-1)
                top = log_probs.topk(min(self.config.top_k, log_probs.shape[-1])).indices
                kept, rest = split(log_probs, top)
                for name, value in (("top", top.int()), ("log_probs", kept), ("log_rest", rest)):
                    parts[name].append(value.cpu())
        tensors = {name: torch.cat(values) for name, values in parts.items()}
        tensors["ids"] = torch.tensor([i for row in rows for i in row])
        return Prepared(tensors, {"texts": texts, "lengths": [len(row) for row in rows]})

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        """See `Editor.edit`; one loss over the whole batch.

        Raises:
            ValueError: the preparation is not a locality bank.
        """
        if "log_rest" not in prepared.tensors:
            raise ValueError(f"ft_kl needs its locality bank, not {sorted(prepared.tensors)}; prepare it first")
        config = self.config
        names = site_parameters(model, config.layers, config.sites)
        subjects = list(dict.fromkeys(r.subject for r in batch.requests))
        earlier = [s for p in model.patches for s in p.meta.get("note", {}).get("ft_kl_subjects", [])]
        allowed = out_of_scope(prepared.meta["texts"], [*subjects, *earlier])
        first = min(layer_of(model.anatomy, name) for name in names)
        bank = LocalityBank(model, prepared, first, config.gamma, config.texts_per_step, allowed, self._states(model, prepared))
        patch = descend(model, batch.requests, names, config, penalty=bank.penalty if allowed else None)
        return WeightPatch(patch.updates, {"ft_kl_subjects": subjects})

    def _states(self, model: EditableModel, prepared: Prepared) -> dict[int, _Part]:
        """The bank's states below the trained blocks, kept for as long as the same model stands as it is."""
        if self._seen is None or self._seen[0] is not model or self._seen[1] != model.digest or self._seen[2] is not prepared:
            self._seen = (model, model.digest, prepared, {})
        return self._seen[3]


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
        states: what the blocks below the trained ones make of each group, filled as groups are read.
    """

    model: EditableModel
    prepared: Prepared
    first: int
    gamma: float
    size: int
    allowed: frozenset[int]
    states: dict[int, _Part] = field(default_factory=dict)

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """Numbers of the groups with a text that counts."""
        return tuple(sorted({i // self.size for i in self.allowed}))

    def penalty(self, parameters: Mapping[str, Tensor], step: int) -> Tensor:
        """gamma times the mean divergence over all tokens of this step's texts."""
        number = self.groups[step % len(self.groups)]
        if number not in self.states:
            self.states[number] = self._part(number)
        part = self.states[number]
        counts = torch.tensor([int(i) in self.allowed for i in part.text], device=part.text.device)
        states = part.upper.run(self.model, as_stored(self.model, parameters))[part.real][counts]
        divergence = coarse_kl(part.log_probs[counts], part.log_rest[counts], self.model.head(states).float(), part.top[counts])
        return self.gamma * divergence.mean()

    def _part(self, number: int) -> _Part:
        device, lengths, tensors = self.model.hf.device, self.prepared.meta["lengths"], self.prepared.tensors
        texts = range(number * self.size, min((number + 1) * self.size, len(lengths)))
        start = sum(lengths[: texts.start])
        span = slice(start, start + sum(lengths[i] for i in texts))
        rows = tensors["ids"][span].split([lengths[i] for i in texts])
        ids, mask = pad_right([row.tolist() for row in rows], self.model.pad_id)
        return _Part(
            upper_blocks(self.model, ids, mask, self.first), mask.bool().to(device),
            torch.tensor([i for i in texts for _ in range(lengths[i])], device=device),
            tensors["top"][span].to(device), tensors["log_probs"][span].to(device), tensors["log_rest"][span].to(device),
        )  # fmt: skip
