"""GRACE: a codebook of values that replace one layer's output where the prompt's last token is near a known key."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, final

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from editors.asking.calls import PromptPositions
from editors.asking.tokens import pad_right
from editors.base import NO_BENCH, Corpus, Editor, EditorCard, EditorConfig, Prepared, Workbench
from editors.errors import EditRefused
from editors.mechanics.answers import (
    TOKENS_PER_PASS,
    AnswerRows,
    Labels,
    answer_labels,
    answer_rows,
    at_positions,
    label_logits,
    row_leads,
    row_losses,
)
from editors.mechanics.paraphrases import in_every_form
from editors.mechanics.suffix import Suffix, suffix_of
from editors.mechanics.trace import Trace, trace
from editors.model import EditableModel
from editors.patches.memory import RETIRED, Codebook, MemoryPatch, RadiusChange, codebook_name
from editors.precision import way_out
from editors.session import slices
from warehouse.records import EditBatch, EditRequest

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

log = logging.getLogger(__name__)

#: A conflict nearer than this share of the first radius is the same prompt, met again.
SAME_PROMPT_SHARE = 1e-2


class GraceConfig(EditorConfig):
    """Numbers of GRACE; distances and steps are relative to the layer, so that one set serves many models.

    Attributes:
        site: what is replaced at the prompt's last token: the feed-forward's output, or the whole block's.
        radius_share, radius_percentile: the first radius is this share of that percentile of the distances
            between unrelated prompts.
        learning_rate: Adam's step as a share of the size (root mean square) of the site's output.
        stop_margin: a value is done when every answer token leads its best rival by this many logits.
        start: begin from the site's own output (`warm`) or from random numbers of its size (`cold`, as published).
    """

    layer: NonNegativeInt
    site: Literal["mlp", "block"] = "block"
    radius_share: PositiveFloat = 0.5
    radius_percentile: PositiveFloat = 5.0
    learning_rate: PositiveFloat = 0.3
    num_steps: PositiveInt = 100
    stop_margin: PositiveFloat = 1.0
    start: Literal["warm", "cold"] = "warm"
    num_prompts: PositiveInt = 512


@dataclass(frozen=True)
class _Query:
    """One pass over some requests: what their last prompt tokens bring into and out of the site.

    Attributes:
        suffix: the blocks above the layer, from the last prompt token on; all before it is fixed.
        labels: with positions counted from the last prompt token.
    """

    model: EditableModel
    keys: Float[Tensor, "rows d_key"]
    outputs: Float[Tensor, "rows d_value"]
    suffix: Suffix
    labels: Labels

    def select(self, rows: Tensor) -> _Query:
        return _Query(self.model, self.keys[rows], self.outputs[rows], self.suffix.select(rows), self.labels.select(rows))

    def logits(self, values: Tensor) -> Tensor:
        """Logits at the labels with `values` (rows, d_value) at the site."""
        with at_positions(self.model, PromptPositions(torch.zeros(len(values), dtype=torch.long, device=values.device))):
            hidden = self.suffix.run(values - self.outputs)
        norm = self.model.hf.get_submodule(self.model.anatomy.final_norm)
        return label_logits(self.model, norm(hidden), self.labels)


@dataclass(frozen=True)
class _Plan:
    """What the codebook's rules say of one query: the new entry's radius (None: no new entry) and changed radii."""

    radius: float | None
    changes: tuple[RadiusChange, ...]


@final
class Grace(Editor[GraceConfig]):
    """Hartvigsen et al. 2023, algorithm 1. Weights stay as they are; prompts far from every key are untouched.

    Rules for a query at distance `d` from the nearest key, of radius `eps`: beyond `eps + eps_0` a new entry; the same
    label and a value that answers this prompt too: widen to `d`; otherwise both share the way between them.
    """

    card = EditorCard(
        name="grace",
        title="GRACE",
        family="architectural",
        patch_kind="memory",
        paper="arXiv:2211.11031",
        code="Thartvigsen/GRACE grace/editors/grace.py",
        needs_preparation=True,
        preserves_architecture=False,
        survey="Training Required: each value is fitted when its edit arrives; the preparation measures distances and trains "
        "nothing.",
        differs=(
            "Labels are compared as token sequences. A value is never trained again: where an old one does not answer "
            "a new prompt of the same label, a new entry is made. No split widens a radius. The same prompt met "
            "again retires its old entry. The first radius is a share of the layer's distances."
        ),
    )

    def preparation_key(self) -> str:
        """Radius and scale depend on the site and the sample, not on the optimiser."""
        c = self.config
        return f"{c.layer}:{c.site}:{c.num_prompts}:{c.seed}:{c.radius_percentile}"

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Measure the site at the last tokens of unrelated prompts: texts cut at a random place.

        Raises:
            ValueError: fewer than two texts.
        """
        if len(corpus.texts) < 2:
            raise ValueError(f"grace needs at least 2 texts to learn the layer's distances, not {len(corpus.texts)}")
        generator = torch.Generator().manual_seed(self.config.seed)
        chosen = torch.randperm(len(corpus.texts), generator=generator)[: self.config.num_prompts].tolist()
        limit = int(getattr(model.hf.config, "max_position_embeddings", 0)) or 256
        encoded = [list(ids)[:limit] for ids in model.tokenizer([corpus.texts[i] for i in chosen])["input_ids"]]
        cut = [ids[: 1 + int(torch.randint(len(ids), (1,), generator=generator))] for ids in encoded if ids]
        keys, sizes = [], []
        for at in range(0, len(cut), 64):
            ids, mask = pad_right(cut[at : at + 64], model.pad_id)
            site = self._site(model)
            seen = trace(model, ids, mask, inputs=(site,), outputs=(site,), stop_after=site)
            inside, outside = _at_last_prompt(seen, site, (mask.sum(1) - 1).to(model.device))
            keys.append(inside)
            sizes.append(outside.square().mean(-1).sqrt())
        distances = torch.nn.functional.pdist(torch.cat(keys).cpu())
        # The same text twice is the same prompt, not two unrelated ones.
        distances = distances[distances > 0]
        if not len(distances):
            raise ValueError("grace found no two different prompts in the corpus; give it more texts")
        return Prepared(
            meta={
                "distance": float(torch.quantile(distances[: 2**23], self.config.radius_percentile / 100)),
                "output_size": float(torch.cat(sizes).median()),
            }
        )

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> MemoryPatch:
        """See `Editor.edit`; the entries and radii of a batch are those of the same edits one after the other."""
        requests = in_every_form(batch.requests)
        if len(requests) == 1:
            return self.edit_each(model, requests, prepared)[0]
        return self._edit_together(model, requests, prepared)

    def edit_each(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[MemoryPatch]:
        """Independent patches; the values of all requests are optimised as the rows of one batch."""
        if any(request.also for request in requests):
            return [self._edit_together(model, in_every_form([request]), prepared) for request in requests]
        return [patch for part in _passes(requests) for patch in self._edit_rows(model, part, prepared)]

    def _edit_together(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> MemoryPatch:
        site, size = self._site(model), float(prepared.meta["output_size"])
        radius = self.config.radius_share * float(prepared.meta["distance"])
        live: Codebook | None = model.memories.get(codebook_name(site))
        book: Codebook | None = None if live is None else live.copy()
        start, before = (0, []) if book is None else (len(book), book.radii.tolist())
        for part in _passes(requests):
            rows, query = self._query(model, part)
            # A value depends on its own prompt alone, so all are optimised at once, before the rules need them.
            values = self._values(query, size, part)
            for i, request in enumerate(part):
                own = torch.tensor([i], device=values.device)
                plan = self._plans(query.select(own), [rows.targets[i]], book, radius)[0]
                if book is None:
                    book = Codebook(query.keys.shape[1], values.shape[1], values.device)
                for change in plan.changes:
                    book.radii[change.index] = change.new
                if plan.radius is not None:
                    book.append(
                        query.keys[own], values[own], torch.tensor([plan.radius]), [rows.targets[i]], [request.request_id]
                    )
        assert book is not None, "an empty batch has no patch"
        changes = [
            RadiusChange(i, old, new)
            for i, (old, new) in enumerate(zip(before, book.radii.tolist(), strict=False))
            if old != new
        ]
        new = slice(start, None)
        return MemoryPatch(
            site,
            start,
            book.keys[new].clone(),
            book.values[new].clone(),
            book.radii[new].clone(),
            book.labels[new],
            book.request_ids[new],
            changes,
        )

    # ------------------------------------------------------------ one pass

    def _site(self, model: EditableModel) -> str:
        path = model.anatomy.mlp if self.config.site == "mlp" else model.anatomy.block
        model.anatomy.module(model.hf, path, self.config.layer)  # refuses a layer that is not there
        return path.format(layer=self.config.layer)

    def _query(self, model: EditableModel, requests: Sequence[EditRequest]) -> tuple[AnswerRows, _Query]:
        rows, site, block = answer_rows(model, requests), self._site(model), model.anatomy.block
        above = [block.format(layer=i) for i in range(self.config.layer + 1, model.anatomy.num_layers(model.hf))]
        with at_positions(model, rows.positions()):
            seen = trace(
                model,
                rows.ids,
                rows.mask,
                inputs=(site,),
                outputs=(site, block.format(layer=self.config.layer)),
                calls=above,
                use_cache=True,
            )
        assert seen.final is not None
        labels = answer_labels(model, rows, seen.final)
        keys, outputs = _at_last_prompt(seen, site, rows.last_prompt)
        written = outputs if self.config.site == "mlp" else None
        suffix = suffix_of(model, seen, self.config.layer, rows.last_prompt, rows.mask.sum(1), written)
        return rows, _Query(model, keys, outputs, suffix, replace(labels, at=labels.at - rows.last_prompt[labels.row]))

    # ------------------------------------------------------------ rules

    def _edit_rows(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[MemoryPatch]:
        (rows, query), site = self._query(model, requests), self._site(model)
        book: Codebook | None = model.memories.get(codebook_name(site))
        radius = self.config.radius_share * float(prepared.meta["distance"])
        plans = self._plans(query, rows.targets, book, radius)
        fresh = torch.tensor(
            [i for i, p in enumerate(plans) if p.radius is not None], dtype=torch.long, device=query.keys.device
        )
        values = torch.empty(0, query.outputs.shape[1], device=query.keys.device)
        if len(fresh):
            values = self._values(
                query.select(fresh), float(prepared.meta["output_size"]), [requests[i] for i in fresh.tolist()]
            )
        start, patches = 0 if book is None else len(book), []
        place = {int(row): i for i, row in enumerate(fresh.tolist())}
        for i, (request, plan) in enumerate(zip(requests, plans, strict=True)):
            new = [i] if plan.radius is not None else []
            patches.append(
                MemoryPatch(
                    site,
                    start,
                    query.keys[new],
                    values[[place[i] for i in new]],
                    torch.tensor([plan.radius for _ in new], dtype=torch.float32),
                    [rows.targets[i] for i in new],
                    [request.request_id for _ in new],
                    plan.changes,
                )
            )
        return patches

    def _plans(self, query: _Query, targets: Sequence[tuple[int, ...]], book: Codebook | None, radius: float) -> list[_Plan]:
        """Apply the codebook's rules to every row on its own."""
        if book is None or not len(book):
            return [_Plan(radius, ())] * len(query.keys)
        index, distance = book.nearest(query.keys)
        with torch.no_grad():
            leads = row_leads(query.logits(book.values[index]), query.labels, query.model.stops)
        answers = (leads > 0).tolist()
        plans = []
        for i, (entry, d) in enumerate(zip(index.tolist(), distance.tolist(), strict=True)):
            old = float(book.radii[entry])
            if d > old + radius:
                plans.append(_Plan(radius, ()))
            elif book.labels[entry] == targets[i]:
                widened = _at_least(d)
                change = (RadiusChange(entry, old, widened),) if widened > old else ()
                plans.append(_Plan(None, change) if answers[i] else _Plan(radius, ()))
            elif d <= SAME_PROMPT_SHARE * radius:
                plans.append(_Plan(max(old, radius * SAME_PROMPT_SHARE), (RadiusChange(entry, old, RETIRED),)))
            else:
                # A little less for the old one: a query just half way belongs to the newer fact.
                shrunk = _float32(min(old, d / 2 * (1 - 1e-5)))
                change = (RadiusChange(entry, old, shrunk),) if shrunk != old else ()
                plans.append(_Plan(min(radius, d / 2), change))
        return plans

    # ------------------------------------------------------------ values

    def _values(self, query: _Query, size: float, requests: Sequence[EditRequest]) -> Tensor:
        """Adam on one value per row, every row with its own loss; rows that are done leave the batch.

        Returns:
            (rows, d_value): of each row the first value that leads by the margin, else the one of the smallest loss.

        Raises:
            EditRefused: logits are not finite.
        """
        config, rows = self.config, torch.arange(len(query.keys), device=query.keys.device)
        if config.start == "cold":
            generator = torch.Generator().manual_seed(config.seed)
            value = torch.randn(query.outputs.shape, generator=generator).to(query.outputs.device) * size
        else:
            value = query.outputs.detach().float().clone()
        best, best_loss = value.clone(), torch.full((len(rows),), float("inf"), device=rows.device)
        done = 0
        first, second = torch.zeros_like(value), torch.zeros_like(value)
        for step in range(1, config.num_steps + 2):
            value.requires_grad_(True)
            logits = query.logits(value)
            lead = row_leads(logits.detach(), query.labels, query.model.stops)
            if not bool(torch.isfinite(lead).all()):
                named = ", ".join(requests[i].request_id for i in rows[~torch.isfinite(lead)].tolist()[:5])
                advice = way_out(query.model.hf.dtype, "lower learning_rate")
                raise EditRefused(f"grace: logits of {named} are not finite at step {step}; {advice}")
            going = (lead < config.stop_margin).nonzero()[:, 0]
            losses = row_losses(logits, query.labels)
            better = (losses.detach() < best_loss[rows]) | (lead >= config.stop_margin)
            best[rows[better]], best_loss[rows[better]] = value.detach()[better], losses.detach()[better]
            done = len(best) - len(going)
            if not len(going) or step > config.num_steps:
                break
            (gradient,) = torch.autograd.grad(losses.sum(), value)
            value = value.detach()
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
            move = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            value = value - config.learning_rate * size * move
            if len(going) < len(value):
                query, rows = query.select(going), rows[going]
                value, first, second = value[going], first[going], second[going]
        log.info("%d values, %d of them lead by %.1f", len(best), done, config.stop_margin)
        return best


def _passes(requests: Sequence[EditRequest]) -> Iterator[Sequence[EditRequest]]:
    """Requests that fit one pass; characters stand in for tokens, an upper bound for all but rare scripts."""
    longest = max((len(r.prompt) + len(r.target_new) for r in requests), default=1)
    return iter(slices(requests, max(1, TOKENS_PER_PASS // longest)))


def _at_last_prompt(seen: Trace, site: str, last: Tensor) -> tuple[Tensor, Tensor]:
    """A site's input and output at one token of each row, (rows, width), fp32."""
    every = torch.arange(len(last), device=last.device)
    return seen.inputs[site][every, last].float(), seen.outputs[site][every, last].float()


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def _at_least(distance: float) -> float:
    """A radius, exact in fp32, that surely takes in a query at `distance`, whatever the rounding of the next batch."""
    return _float32(distance * (1 + 1e-4))
