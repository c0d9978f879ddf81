"""Is a subject's last token told from all others at a layer? Whether slots can work on a model, before any is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.base import Corpus
from editors.ledger.ledger import LedgerConfig
from editors.ledger.subject_filter import SubjectSpace, lookup_states, space_of, space_texts, text_states, wordings_for
from editors.mechanics.contexts import encode_lookups
from editors.model import EditableModel
from editors.views import at_base
from warehouse.errors import UsageError

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: States held at once, in fp32: one GiB. 30 layers of 576 over the calibration corpus and 200 subjects are 0.8 of it.
FLOATS_AT_ONCE = 2**28
#: For progress: so many layers are solved in the time that a model of 100M takes to read everything once.
SOLVED_PER_READING = 400


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


def separability(
    model: EditableModel,
    corpus: Corpus,
    subjects: Sequence[str],
    config: LedgerConfig,
    layers: Sequence[int] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, dict[str, Separated]]:
    """By layer, own and foreign answers of a mean `key` (its cosine) and of the ledger's `filter`, at the base.

    Half of a subject's wordings make its detector, the other half ask it. The model reads everything once for all layers;
    only the states that are asked for are kept, at most `FLOATS_AT_ONCE` of them. Where more layers are wanted than that
    holds, it reads again for the rest.

    Args:
        corpus: the bank that filters are made against; its subjects must be none of those asked.
        config: the ledger's, with `key_wordings` prompts of any relation for each subject.
        layers: those asked; by default the configuration's.
        progress: told (done, total): tokens read, with what solving a layer costs counted as some of them.

    Raises:
        UnsupportedModel: the model has no such layer.
        UsageError: fewer than 2 subjects or wordings.
        ValueError: a corpus without training edits.
    """
    count = config.key_wordings
    if len(set(subjects)) < 2 or count < 2:
        raise UsageError(f"{len(set(subjects))} subjects in {count} wordings: separability needs at least 2 of both")
    wanted = sorted(set(layers) or {config.layer})
    for layer in wanted:
        model.anatomy.module(model.hf, model.anatomy.mlp, layer)  # refuses a layer that is not there
    texts = space_texts(model, corpus, wordings=config.bank_wordings, tokens=config.bank_tokens, seed=config.seed)
    prompts = {s: wordings_for(s, texts.every, count, ()) for s in subjects}
    pairs = [(p, s) for s, own in prompts.items() for p in own]
    asked = encode_lookups(model, [p for p, _ in pairs], [s for _, s in pairs], [""] * len(pairs), wordings=texts.every)
    owner = torch.tensor([i for i, own in enumerate(prompts.values()) for _ in own])
    # Wordings come in an order of the subject's own, so every second one is a fair half.
    made = torch.cat([torch.arange(len(own)) for own in prompts.values()]) % 2 == 0
    states = len(texts.known) + len(asked) + len(texts.plain.places)
    at_once = max(1, FLOATS_AT_ONCE // (states * model.anatomy.d_model(model.hf)))
    parts = [wanted[at : at + at_once] for at in range(0, len(wanted), at_once)]
    tokens = sum(row.lookup + 1 for row in [*texts.known, *asked]) + texts.plain.tokens
    solving, done = max(1, tokens // SOLVED_PER_READING), 0

    def read(more: int) -> None:
        nonlocal done
        done += more
        progress(done, tokens * len(parts) + solving * len(wanted))

    read(0)
    found: dict[int, dict[str, Separated]] = {}
    for part in parts:
        sites = {layer: model.anatomy.mlp.format(layer=layer) for layer in part}
        with at_base(model):
            known = lookup_states(model, texts.known, tuple(sites.values()), read)
            plain = text_states(model, texts.plain, tuple(sites.values()), read)
            seen = lookup_states(model, asked, tuple(sites.values()), read)
        for layer, site in sites.items():
            space = space_of(known.pop(site), plain.pop(site), config.bank_ridge)
            found[layer] = _detectors(space, seen.pop(site), owner, made, config.filter_slack)
            read(solving)
    return found


def _detectors(
    space: SubjectSpace, states: Float[Tensor, "states d_model"], owner: Tensor, made: Tensor, slack: float
) -> dict[str, Separated]:
    """Of states at one layer: `owner` is each one's subject, `made` says whether it makes the detector or asks it."""
    each = range(int(owner.max()) + 1)
    directions = _unit(states - space.mean)
    keys = torch.stack([_unit(directions[made & (owner == i)].mean(0)) for i in each])
    filters = torch.stack([space.filter(states[made & (owner == i)], slack) for i in each])
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
