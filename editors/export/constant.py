"""A direction along which the inputs of a feed-forward are nearly 1: what a threshold is folded into where no bias fits.

Behind a norm nearly every token has a component that it shares with all others, so some vector `v` has `v . h = 1` to a few
hundredths. A neuron `act(k . h + b)` is then `act((k + b v) . h)`, and where a gated feed-forward multiplies by a second
projection, `v` is that projection's row.

    v   = argmin E (v . h - 1)^2 + ridge |v|^2 ,   E over plain text, subjects and first tokens
    v_A = v + M A^T (A M A^T + slack tr/n I)^-1 (1 - A v) ,   M the inverse second moment, A states where 1 matters
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.base import Corpus
from editors.ledger.subject_filter import TextSample, lookup_states, sample_texts, text_states, wordings_for
from editors.mechanics.contexts import encode_lookups
from editors.mechanics.paraphrases import relation_templates
from editors.model import EditableModel
from editors.views import at_base

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: Relative to the mean diagonal of the second moment.
RIDGE = 1e-3
#: Relative to the mean diagonal of the own states' Gram matrix: how far own answers may stray from 1.
SLACK = 1e-2
#: Between these lie 98 of 100 tokens of text that took no part, or nothing is constant there.
LOWEST, HIGHEST = 0.5, 1.5
#: What is read: tokens of text, subjects with a few wordings of each.
TOKENS, SUBJECTS, WORDINGS, SEED = 4_000, 120, 2, 0
#: What all tokens of a kind count, in sum. Subjects count most: in the other wordings of an edit's subject a slot must open as
#: wide as it does with hooks (of 190 such places in SmolLM2, 16 slots, five lost a fifth of their opening at 0.5, one at 3).
SHARES = {"plain": 1.0, "known": 3.0, "first": 0.05}


@dataclass(frozen=True)
class Constant:
    """The constant direction of one site.

    Attributes:
        vector: `v`.
        spread: `M`, the inverse of the second moment with its ridge.
        low, high: `v . h` at the first and the last hundredth of what took no part in the fit, of text, subjects or first
            tokens, wherever it is furthest from 1.
    """

    vector: Float[Tensor, " d_model"]
    spread: Float[Tensor, "d_model d_model"]
    low: float
    high: float

    @property
    def is_steady(self) -> bool:
        """Is anything constant here? Not in every architecture, and not in a model of random numbers."""
        return self.low >= LOWEST and self.high <= HIGHEST

    def at(self, states: Float[Tensor, "states d_model"]) -> Float[Tensor, " d_model"]:
        """The direction nearest to `vector`, in the metric of the second moment, that answers 1 to some states; float64.

        It depends on these states alone, so that columns of a set of edits are those of each of them.
        """
        vector, own = self.vector.double(), states.double()
        if not len(own):
            return vector
        towards = own @ self.spread.double()
        gram = towards @ own.t()
        gram.diagonal().add_(SLACK * gram.diagonal().mean())
        return vector + torch.linalg.solve(gram, 1 - own @ vector) @ towards


def constant_of(
    plain: Float[Tensor, "tokens d_model"],
    known: Float[Tensor, "subjects d_model"],
    first: Float[Tensor, "texts d_model"],
) -> Constant:
    """The constant direction of states: of plain text, at subjects' last tokens, and at first tokens of texts.

    Raises:
        ValueError: fewer than two tokens of plain text.
    """
    if len(plain) < 2:
        raise ValueError(f"{len(plain)} tokens of text say nothing of what is constant; give some thousands")
    tried, _ = _solved(plain[::2], known[::2], first[::2])
    left = [(states[1::2].double() @ tried).float() for states in (plain, known, first) if len(states) > 1]
    vector, spread = _solved(plain, known, first)
    ends = torch.stack([torch.quantile(answers, torch.tensor([0.01, 0.99])) for answers in left])
    return Constant(vector.float(), spread.float(), float(ends[:, 0].min()), float(ends[:, 1].max()))


def _solved(plain: Tensor, known: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """`v` and `M`, float64."""
    width = plain.shape[1]
    moment, mean = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for share, states in zip(SHARES.values(), (plain, known, first), strict=True):
        if len(states):
            wide = states.double()
            moment += share * (wide.t() @ wide) / len(wide)
            mean += share * wide.mean(0)
    moment.diagonal().add_(RIDGE * moment.diagonal().mean())
    spread = torch.linalg.inv(moment)
    return spread @ mean, (spread + spread.t()) / 2


def read_constants(model: EditableModel, corpus: Corpus, sites: Sequence[str]) -> dict[str, Constant]:
    """The constant direction of each feed-forward, from the base model at texts and subjects of a corpus.

    Args:
        sites: module paths, in the order of their layers.

    Raises:
        ValueError: the corpus has no text.
    """
    with at_base(model):
        sample = sample_texts(model, corpus.texts, TOKENS, SEED)
        first, drawn = _first_tokens(sample), len(sample.places)
        # One pass for both.
        read = text_states(model, TextSample(sample.chunks, torch.cat([sample.places, first])), sites)
        known = _known(model, corpus, sites)
    return {site: constant_of(read[site][:drawn], known[site], read[site][drawn:]) for site in sites}


def _first_tokens(sample: TextSample) -> Tensor:
    """Places of the first token of each text."""
    lengths = torch.tensor([len(row) for chunk in sample.chunks for row in chunk])
    return lengths.cumsum(0) - lengths


def _known(model: EditableModel, corpus: Corpus, sites: Sequence[str]) -> Mapping[str, Tensor]:
    """States at the last tokens of subjects, evenly chosen by name."""
    every = sorted({t for known in relation_templates(corpus.edits).values() for t in known})
    subjects = sorted({e.request.subject for e in corpus.edits})
    chosen = subjects[:: max(1, len(subjects) // SUBJECTS)]
    pairs = [(p, s) for s in chosen for p in [s, *wordings_for(s, every, WORDINGS, ())]]
    rows = encode_lookups(model, [p for p, _ in pairs], [s for _, s in pairs], [""] * len(pairs), wordings=every)
    return lookup_states(model, rows, sites)
