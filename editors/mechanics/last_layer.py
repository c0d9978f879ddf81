"""The last feed-forward layer with something added to its output: only a final norm and the head stand above it.

What an optimisation step costs is then a few hundred positions through the head; all below is run once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.asking.tokens import pad_right
from editors.base import NO_BENCH, Corpus, Workbench
from editors.mechanics.answers import AnswerRows, Labels, answer_labels, answer_rows, at_positions, row_leads
from editors.mechanics.behind import refuse_norm_behind
from editors.mechanics.trace import trace
from editors.model import EditableModel
from editors.views import at_base
from warehouse.records import EditRequest

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: Texts in one pass over a corpus.
ROWS_PER_PASS = 64


def last_site(model: EditableModel) -> str:
    """Path of the last feed-forward."""
    return model.anatomy.mlp.format(layer=model.anatomy.num_layers(model.hf) - 1)


def last_block(model: EditableModel) -> str:
    """Path of the last block."""
    return model.anatomy.block.format(layer=model.anatomy.num_layers(model.hf) - 1)


@dataclass(frozen=True)
class Positions:
    """Cached positions of the last layer.

    Attributes:
        queries: inputs of the last feed-forward, after its norm.
        hidden: outputs of the last block.
    """

    queries: Float[Tensor, "positions d_model"]
    hidden: Float[Tensor, "positions d_model"]

    def logits(self, model: EditableModel, added: Float[Tensor, "positions d_model"] | None = None) -> Tensor:
        """(positions, vocab) in fp32, with `added` to the feed-forward's output."""
        hidden = self.hidden if added is None else self.hidden + added
        norm = model.hf.get_submodule(model.anatomy.final_norm)
        return model.head(norm(hidden.to(model.hf.dtype))).float()

    def select(self, chosen: Tensor) -> Positions:
        return Positions(self.queries[chosen], self.hidden[chosen])


def last_layer_answers(model: EditableModel, requests: Sequence[EditRequest]) -> tuple[Positions, Labels]:
    """One pass over requests as answer rows, kept where a label is to be predicted.

    Raises:
        InvalidRequest: a request that cannot be applied.
        UnsupportedModel: a norm stands behind the feed-forward.
    """
    refuse_norm_behind(model, "an editor of the last layer's positions")
    rows: AnswerRows = answer_rows(model, requests)
    site, block = last_site(model), last_block(model)
    with at_positions(model, rows.positions()):
        seen = trace(model, rows.ids, rows.mask, inputs=(site,), outputs=(block,))
    assert seen.final is not None
    labels = answer_labels(model, rows, seen.final)
    return Positions(
        seen.inputs[site][labels.row, labels.at].float(), seen.outputs[block][labels.row, labels.at].float()
    ), labels


def label_leads(logits: Tensor, labels: Labels, stops: Tensor) -> Float[Tensor, " labels"]:
    """Lead of each label over its best rival, in logits."""
    each = torch.arange(len(labels.row), device=labels.row.device)
    return row_leads(logits, replace(labels, row=each, num_rows=len(each)), stops)


def every(good: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """(rows,) whether all entries of a row are good; a row without any is."""
    return torch.bincount(row[~good], minlength=num_rows) == 0


@dataclass(frozen=True)
class TextBank:
    """The base's last layer at the tokens of some texts; `lengths` says how many tokens of each are here."""

    places: Positions
    texts: tuple[str, ...]
    lengths: tuple[int, ...]


def read_bank(model: EditableModel, corpus: Corpus, size: int, seed: int, bench: Workbench = NO_BENCH) -> TextBank:
    """The first `size` tokens of the corpus in a seeded order of its texts.

    Raises:
        ValueError: the corpus holds no token.
        UnsupportedModel: a norm stands behind the feed-forward.
    """
    refuse_norm_behind(model, "an editor of the last layer's positions")
    order = sorted(t for t in set(corpus.texts) if t)
    random.Random(seed).shuffle(order)
    limit = int(getattr(model.hf.config, "max_position_embeddings", 0)) or 256
    site, block = last_site(model), last_block(model)
    parts: list[Positions] = []
    texts: list[str] = []
    lengths: list[int] = []
    with at_base(model):
        for at in range(0, len(order), ROWS_PER_PASS):
            left = size - sum(lengths)
            if left <= 0:
                break
            chunk = order[at : at + ROWS_PER_PASS]
            rows = [list(ids)[:limit] for ids in model.tokenizer(chunk)["input_ids"]]
            ids, mask = pad_right(rows, model.pad_id)
            seen = trace(model, ids, mask, inputs=(site,), outputs=(block,), stop_after=block)
            real = mask.bool().to(model.device)
            queries, hidden = (t[real].float().cpu()[:left] for t in (seen.inputs[site], seen.outputs[block]))
            parts.append(Positions(queries, hidden))
            for text, row in zip(chunk, rows, strict=True):
                kept = min(len(row), size - sum(lengths))
                texts += [text] * (kept > 0)
                lengths += [kept] * (kept > 0)
            bench.progress(sum(lengths), size, "tokens of the bank")
    if not lengths:
        raise ValueError("the corpus holds no token; a bank needs texts")
    places = Positions(torch.cat([p.queries for p in parts]), torch.cat([p.hidden for p in parts]))
    return TextBank(places, tuple(texts), tuple(lengths))
