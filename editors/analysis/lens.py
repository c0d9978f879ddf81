"""The vocabulary that a feed-forward layer's output speaks: is the entity, is the fact among its first tokens?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.asking.tokens import continuation_of, pad_right
from editors.mechanics.behind import behind
from editors.mechanics.contexts import encode_lookups
from editors.mechanics.trace import trace
from editors.model import EditableModel

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Int


@dataclass(frozen=True)
class LensRanks:
    """Rank (0: first) of the subject's and of the answer's tokens, the best of each, in every layer's output.

    Attributes:
        entity, fact: (facts, layers).
    """

    entity: Int[Tensor, "facts layers"]
    fact: Int[Tensor, "facts layers"]

    def hit(self, k: int) -> tuple[Tensor, Tensor]:
        """Hit@k of entity and fact, (layers,) each: the share of facts with a token of theirs among the first k."""
        return (self.entity < k).float().mean(0), (self.fact < k).float().mean(0)


@torch.no_grad()
def lens_ranks(model: EditableModel, prompts: Sequence[str], subjects: Sequence[str], answers: Sequence[str]) -> LensRanks:
    """Read the feed-forward output at each subject's last token through the final norm and the head.

    The vocabulary lens of Geva et al. 2022, with which the KnowEdit study asks whether a located layer holds the entity
    or the fact; Hit@10 and Hit@50 come from these ranks.

    Raises:
        InvalidRequest: a subject is not in its prompt.
    """
    rows = encode_lookups(model, prompts, subjects, [continuation_of(a) for a in answers])
    alone = model.tokenizer([" " + s for s in subjects])["input_ids"]
    depth = model.anatomy.num_layers(model.hf)
    paths = [model.anatomy.mlp.format(layer=i) for i in range(depth)]
    norm = model.hf.get_submodule(model.anatomy.final_norm)
    ids, mask = pad_right([r.ids[: r.lookup + 1] for r in rows], model.pad_id)
    seen = trace(model, ids, mask, outputs=paths)
    every, lookup = torch.arange(len(rows)), torch.tensor([r.lookup for r in rows])
    entity, fact = [], []
    for layer, path in enumerate(paths):
        written = seen.outputs[path][every, lookup]
        passed = behind(model, layer, written)
        # What reaches the residual stream.
        logits = model.head(norm(written if passed is None else passed.norm(written))).float()
        # Rank of a token: how many of the vocabulary lie above it.
        entity.append([_best_rank(logits[i], own) for i, own in enumerate(alone)])
        fact.append([_best_rank(logits[i], r.ids[r.start :]) for i, r in enumerate(rows)])
    return LensRanks(torch.tensor(entity).t(), torch.tensor(fact).t())


def _best_rank(logits: Tensor, ids: Sequence[int]) -> int:
    return int((logits > logits[list(ids)].max()).sum())
