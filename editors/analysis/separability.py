"""Is a subject's last token told from all others at a layer? Whether slots can work on a model, before any is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.base import Corpus
from editors.ledger.ledger import Ledger, LedgerConfig
from editors.ledger.subject_filter import SubjectSpace, subject_states, wordings_for
from editors.model import EditableModel
from editors.views import at_base
from warehouse.errors import UsageError

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float


@dataclass(frozen=True)
class Separated:
    """What one kind of detector answers, over subjects; its answer to the wordings that it is made of is about 1.

    Attributes:
        own: (subjects,) smallest answer to the subject in wordings that the detector has not seen.
        foreign: (subjects,) largest answer to another subject in any wording, or to a token of plain text.
    """

    own: Float[Tensor, " subjects"]
    foreign: Float[Tensor, " subjects"]

    @property
    def share(self) -> float:
        """Share of the subjects with a threshold that all their own wordings reach and nothing else does."""
        return float((self.own > self.foreign).float().mean())


def separability(model: EditableModel, corpus: Corpus, subjects: Sequence[str], config: LedgerConfig) -> dict[str, Separated]:
    """Own and foreign answers of a mean `key` (its cosine) and of the ledger's `filter` for each subject, at the base.

    Half of a subject's wordings make its detector, the other half ask it. One pass over the prompts up to the layer.

    Args:
        corpus: the bank that filters are made against; its subjects must be none of those asked.
        config: the ledger's, whose layer is asked, with `key_wordings` prompts of any relation for each subject.

    Raises:
        UnsupportedModel: the model has no such layer.
        ValueError: fewer than 2 subjects or wordings, or a corpus without training edits.
    """
    wordings = config.key_wordings
    if len(set(subjects)) < 2 or wordings < 2:
        raise UsageError(f"{len(set(subjects))} subjects in {wordings} wordings: separability needs at least 2 of both")
    prepared = Ledger(config).prepare(model, corpus)
    space = SubjectSpace(prepared.tensors["mean"], prepared.tensors["precision"], prepared.tensors["bank"])
    every = sorted({t for known in prepared.meta["templates"].values() for t in known})
    asked = [(wordings_for(s, every, wordings, ()), s) for s in dict.fromkeys(subjects)]
    names = [s for prompts, s in asked for _ in prompts]
    with at_base(model):
        site = model.anatomy.mlp.format(layer=config.layer)
        states = subject_states(model, [p for prompts, _ in asked for p in prompts], names, site, every)
    owner = torch.tensor([i for i, (prompts, _) in enumerate(asked) for _ in prompts])
    # Wordings come in an order of the subject's own, so every second one is a fair half.
    place = torch.cat([torch.arange(len(prompts)) for prompts, _ in asked])
    made = place % 2 == 0
    directions = _unit(states - space.mean)
    keys = torch.stack([_unit(directions[made & (owner == i)].mean(0)) for i in range(len(asked))])
    filters = torch.stack([space.filter(states[made & (owner == i)], config.filter_slack) for i in range(len(asked))])
    bank = space.bank - space.mean
    return {
        "key": _separated(keys @ directions.t(), (keys @ _unit(bank).t()).amax(1), owner, made),
        "filter": _separated(filters @ (states - space.mean).t(), (filters @ bank.t()).amax(1), owner, made),
    }


def _unit(states: Tensor) -> Tensor:
    return torch.nn.functional.normalize(states, dim=-1)


def _separated(
    answers: Float[Tensor, "subjects states"], bank: Float[Tensor, " subjects"], owner: Tensor, made: Tensor
) -> Separated:
    own = owner[None, :] == torch.arange(len(answers))[:, None]
    smallest = answers.masked_fill(~own | made[None, :], float("inf")).amin(1)
    return Separated(smallest, torch.maximum(bank, answers.masked_fill(own, float("-inf")).amax(1)))
