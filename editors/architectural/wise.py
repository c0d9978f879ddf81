"""WISE: a side copy of one feed-forward output matrix that takes the edits, and a router between it and the main one."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from editors.asking.tokens import continuation_of, encode_rows
from editors.base import NO_BENCH, Corpus, Editor, EditorCard, EditorConfig, Prepared, Workbench
from editors.errors import EditRefused
from editors.mechanics.answers import (
    AnswerRows,
    Labels,
    answer_labels,
    answer_rows,
    at_positions,
    label_logits,
    row_leads,
    row_losses,
)
from editors.mechanics.behind import Behind, behind
from editors.mechanics.descent import UpperBlocks
from editors.mechanics.locality_bank import out_of_scope
from editors.mechanics.paraphrases import in_every_form
from editors.mechanics.trace import trace
from editors.model import EditableModel
from editors.patches.side_memory import SideMemory, SidePatch, SideRules, activity, side_memory_name
from editors.precision import way_out
from editors.views import at_base
from warehouse.digests import digest_of
from warehouse.records import EditBatch

log = logging.getLogger(__name__)

PER_PASS = 64


class WiseConfig(EditorConfig):
    """Numbers of WISE.

    Attributes:
        layer: whose feed-forward output matrix is copied.
        learning_rate: Adam's step, as a share of the matrix's size (root mean square).
        num_steps: at most so many, for each shard's worth of edits that a batch holds.
        alpha, beta, gamma: margins of the activity, as shares of the norm of the projection's output on unrelated prompts:
            at most alpha there, at least beta on an edit's prompt, and gamma between the two.
        ratio: the side memory answers above this share of the least activity of its edits.
        unrelated_share: and, where that is less, above the activity that so many of the bank's unrelated prompts stay below;
            0: the published form, `ratio` alone. A merge of shards goes by `ratio` alone.
        activation_weight: of the activity's margins beside the likelihood.
        keep_weight: of what the side weight already adds at the tokens of the shard's earlier edits (prompt and answer), whose
            change is held down; 0: the published form.
        mask_ratio: share of the entries that one shard may change.
        shard_size, shards_per_merge, density: edits in a shard, closed shards in a merge, entries that enter it (TIES).
        retrieve: keep every shard as a memory of its own instead of merging (WISE-Retrieve).
        stop_margin, stop_missed: training is done when all answer tokens lead by so many logits and the margins of the
            activity are missed by no more than this, on average.
        num_prompts, max_tokens: unrelated prompts of the bank, each cut to so many tokens.
        prompts_per_step: how many of them, and of the shard's earlier edits, a step reads.
    """

    layer: NonNegativeInt
    learning_rate: PositiveFloat = 0.1
    num_steps: PositiveInt = 70
    alpha: NonNegativeFloat = 0.05
    beta: PositiveFloat = 0.2
    gamma: NonNegativeFloat = 0.1
    ratio: PositiveFloat = Field(default=0.88, lt=1)
    unrelated_share: NonNegativeFloat = Field(default=0.0, le=1)
    activation_weight: NonNegativeFloat = 1.0
    keep_weight: NonNegativeFloat = 0.0
    mask_ratio: PositiveFloat = Field(default=0.2, le=1)
    shard_size: PositiveInt = 500
    shards_per_merge: PositiveInt = 2
    density: PositiveFloat = Field(default=0.53, le=1)
    retrieve: bool = False
    stop_margin: PositiveFloat = 1.0
    stop_missed: NonNegativeFloat = 0.01
    num_prompts: PositiveInt = 256
    max_tokens: PositiveInt = 32
    prompts_per_step: PositiveInt = 8

    @property
    def rules(self) -> SideRules:
        return SideRules(self.shard_size, 0 if self.retrieve else self.shards_per_merge, self.density, self.ratio)


@dataclass(frozen=True)
class _Rows:
    """Requests up to the layer, the main weight answering: what the side weight changes is added to `upper.hidden`.

    Attributes:
        keys: (rows, tokens, d_mlp) input of the projection.
        prompt: (rows, tokens) the prompt's tokens.
    """

    keys: Tensor
    prompt: Tensor
    upper: UpperBlocks
    labels: Labels
    behind: Behind | None

    def logits(self, model: EditableModel, delta: Tensor) -> Tensor:
        """(labels, vocab) with the side weight at every token."""
        change = F.linear(self.keys, delta)
        if self.behind is not None:
            change = self.behind(change)
        hidden = self.upper.hidden + change.to(self.upper.hidden.dtype)
        final = UpperBlocks(hidden, self.upper.calls, self.upper.positions, self.upper.final).run(model, {})
        return label_logits(model, final, self.labels)


@dataclass(frozen=True)
class _Prompts:
    """Prompts as they reach the projection with the main weight below it: keys of each, (tokens, d_mlp)."""

    keys: Sequence[Tensor]

    def activities(self, delta: Tensor) -> Tensor:
        """(prompts,)"""
        parts = [self.sample_activities(delta, range(at, at + PER_PASS)) for at in range(0, len(self.keys), PER_PASS)]
        return torch.cat(parts) if parts else delta.new_zeros(0)

    def sample_activities(self, delta: Tensor, chosen: Sequence[int]) -> Tensor:
        """(chosen,); numbers past the end are left out."""
        keys = [self.keys[i] for i in chosen if i < len(self.keys)]
        if not keys:
            return delta.new_zeros(0)
        mask = pad_sequence([torch.ones(len(k), dtype=torch.bool, device=k.device) for k in keys], batch_first=True)
        return activity(delta, pad_sequence(keys, batch_first=True), mask)

    def change(self, delta: Tensor, chosen: Sequence[int]) -> Tensor:
        """Mean squared norm, over the tokens of some prompts, of what `delta` changes in the projection's output."""
        keys = [self.keys[i] for i in chosen]
        return F.linear(torch.cat(keys), delta).square().sum(-1).mean() if keys else delta.new_zeros(())


@dataclass(frozen=True)
class _Context:
    """What a step reads beside the batch: the shard's earlier edits (their prompts, and prompts with answers), and
    unrelated prompts."""

    earlier: _Prompts
    answered: _Prompts
    unrelated: _Prompts


@final
class Wise(Editor[WiseConfig]):
    """Wang et al. 2024: `W'` takes the edits, `D(x) = ||A(x) (W' - W)||` decides who answers a prompt (eq. 3 to 5).

    The side weight acts at every token of a prompt that is above the threshold, from its first token on.
    """

    card = EditorCard(
        name="wise",
        title="WISE",
        family="architectural",
        patch_kind="memory",
        paper="arXiv:2405.14768",
        code="zjunlp/EasyEdit easyeditor/models/wise",
        needs_preparation=True,
        preserves_architecture=False,
        only_xy=False,
        differs=(
            "Margins and step are shares of the layer's own sizes, where the published ones are absolute and per model. Adam, "
            "not SGD; training stops once answers lead by a margin and the activities keep theirs. The decision is taken "
            "once per prompt, on its tokens alone. Unrelated prompts come from the corpus, not with the request. What is below "
            "the layer runs once. Prompts of a shard's earlier edits keep their activity in later training, and with "
            "`keep_weight` what the side weight adds there; the threshold is taken anew from all of them, "
            "and with `unrelated_share` it is no higher than what unrelated prompts reach. The merge is a "
            "function of all closed shards, not of the last merge."
        ),
    )

    def __init__(self, config: WiseConfig) -> None:
        super().__init__(config)
        self._seen: tuple[EditableModel, str, dict[str, Tensor]] | None = None

    def preparation_key(self) -> str:
        """The prompts and the layer that is measured, not the optimiser."""
        return f"{self.config.layer}:{self.config.num_prompts}:{self.config.max_tokens}:{self.config.seed}"

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Choose the unrelated prompts, half of them from training edits, and measure the projection's output on them.

        Returns:
            meta: `prompts`, and `output_norm`, the mean norm of the projection's output over their tokens.

        Raises:
            UnsupportedModel: a layer that the model does not have.
            ValueError: the corpus holds no prompt.
        """
        self._site(model)
        count, shuffle = self.config.num_prompts, random.Random(self.config.seed).shuffle
        asked = sorted({p for e in corpus.edits for p in (e.request.prompt, *(prompt for prompt, _ in e.kept))})
        texts = sorted({t for t in corpus.texts if t.strip()} - set(asked))
        shuffle(asked)
        shuffle(texts)
        texts = texts[: count - min(len(asked), count // 2)]
        prompts = [*texts, *asked[: count - len(texts)]]
        if not prompts:
            raise ValueError("wise needs texts or training edits for its unrelated prompts; the corpus has neither")
        with at_base(model):
            weight = model.weight(model.anatomy.mlp_out, self.config.layer).float()
            norms = torch.cat(
                [F.linear(keys, weight).norm(dim=-1) for keys in self._read(model, prompts, self.config.max_tokens).keys]
            )
        return Prepared(meta={"prompts": prompts, "output_norm": float(norms.mean())})

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> SidePatch:
        """See `Editor.edit`; the whole batch trains the shard that is open.

        Raises:
            EditRefused: the loss is not finite.
        """
        if "output_norm" not in prepared.meta:
            raise ValueError(f"wise needs its unrelated prompts, not {sorted(prepared.meta)}; prepare it first")
        site = self._site(model)
        held: SideMemory | None = model.memories.get(side_memory_name(site))
        requests = in_every_form(batch.requests)
        rows = self._rows(model, answer_rows(model, requests), held)
        shard = 0 if held is None else held.open_shard
        weight = model.weight(model.anatomy.mlp_out, self.config.layer)
        start = torch.zeros_like(weight, dtype=torch.float32)
        if held is not None and shard in held.shards:
            start = held.shards[shard]
        mask = self._mask(tuple(weight.shape), shard).to(weight.device)
        allowed = out_of_scope(prepared.meta["prompts"], [r.subject for r in requests])
        prompts = [p for i, p in enumerate(prepared.meta["prompts"]) if i in allowed]
        unrelated = self._read(model, prompts, self.config.max_tokens)
        context = self._context(model, [] if held is None else held.edits(shard), unrelated)
        sizes = (float(prepared.meta["output_norm"]), float(weight.float().square().mean().sqrt()))
        delta = self._train(model, rows, context, start, mask, sizes)
        activities = [*context.earlier.activities(delta).tolist(), *activity(delta, rows.keys, rows.prompt).tolist()]
        return SidePatch(
            site,
            0 if held is None else len(held),
            shard,
            mask,
            (delta - start)[mask],
            activities,
            self.config.rules,
            [(r.prompt, r.target_new) for r in requests],
            self._unrelated_limit(unrelated, delta),
        )

    def _unrelated_limit(self, unrelated: _Prompts, delta: Tensor) -> float | None:
        share = self.config.unrelated_share
        return float(unrelated.activities(delta).quantile(share)) if share and len(unrelated.keys) else None

    def _site(self, model: EditableModel) -> str:
        model.anatomy.module(model.hf, model.anatomy.mlp_out, self.config.layer)  # refuses a layer that is not there
        return model.anatomy.mlp_out.format(layer=self.config.layer)

    def _mask(self, shape: tuple[int, ...], shard: int) -> Tensor:
        """Entries that a shard may change: one in 1 / mask_ratio, at random, the same for all its edits."""
        seed = int(digest_of("wise-mask", self.config.seed, shard)[:12], 16)
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < self.config.mask_ratio

    def _rows(self, model: EditableModel, rows: AnswerRows, held: SideMemory | None) -> _Rows:
        """One pass with the main weight; a row trains the side weight whether the router would choose it today or not."""
        anatomy, layer, site = model.anatomy, self.config.layer, self._site(model)
        block = anatomy.block.format(layer=layer)
        above = [anatomy.block.format(layer=i) for i in range(layer + 1, anatomy.num_layers(model.hf))]
        positions = rows.positions()

        def read() -> Any:
            with at_positions(model, positions):
                return trace(model, rows.ids, rows.mask, inputs=(site,), outputs=(site, block), calls=above)

        if held is None:
            seen = read()
        else:
            with held.resting():
                seen = read()
        calls: Mapping[str, Mapping[str, Any]] = {
            path: {k: v for k, v in seen.calls[path].items() if k != "hidden_states"} for path in above
        }
        assert positions.prompt_mask is not None
        upper = UpperBlocks(seen.outputs[block], calls, positions, seen.final)
        labels = answer_labels(model, rows, seen.final)
        passed = behind(model, layer, seen.outputs[site])
        return _Rows(seen.inputs[site].float(), positions.prompt_mask, upper, labels, passed)

    def _read(self, model: EditableModel, prompts: Sequence[str], max_tokens: int | None = None) -> _Prompts:
        """First tokens of prompts at the projection, kept while nothing below it changes; the side memory changes nothing."""
        site = self._site(model)
        stands = digest_of([p.digest for p in model.patches if not (isinstance(p, SidePatch) and p.site == site)])
        if self._seen is None or self._seen[0] is not model or self._seen[1] != stands:
            self._seen = (model, stands, {})
        known = self._seen[2]
        context = int(getattr(model.hf.config, "max_position_embeddings", 0)) or 256
        for prompt in prompts:
            if prompt not in known:
                # One at a time: what is read must not depend on which prompts an earlier edit has read already.
                ids = torch.tensor([list(model.tokenizer(prompt)["input_ids"])[:context] or [model.pad_id]])
                seen = trace(model, ids, torch.ones_like(ids), inputs=(site,), stop_after=site)
                known[prompt] = seen.inputs[site][0].float()
        return _Prompts([known[prompt][:max_tokens] for prompt in prompts])

    def _context(self, model: EditableModel, edits: Sequence[tuple[str, str]], unrelated: _Prompts) -> _Context:
        prompts, answers = [p for p, _ in edits], [continuation_of(a) for _, a in edits]
        answered = self._read(model, [p + a for p, a in zip(prompts, answers, strict=True)])
        starts = [row.start for row in encode_rows(model.tokenizer, prompts, answers)]
        return _Context(_Prompts([k[:n] for k, n in zip(answered.keys, starts, strict=True)]), answered, unrelated)

    def _train(
        self, model: EditableModel, rows: _Rows, context: _Context, start: Tensor, mask: Tensor, sizes: tuple[float, float]
    ) -> Tensor:
        """Adam on the shard's entries until the answers lead by the margin and the activities keep theirs.

        Args:
            sizes: norm of the projection's output, and root mean square of its weight.

        Returns:
            (d_out, d_in): the side weight's difference from the main one.
        """
        config, (output_norm, weight_size), earlier = self.config, sizes, context.earlier
        values = start[mask].clone().requires_grad_(True)
        optimizer = torch.optim.Adam([values], lr=config.learning_rate * weight_size)
        generator = torch.Generator().manual_seed(config.seed)
        delta, steps, loss, lead, missed = start, 0, torch.zeros(()), 0.0, 0.0
        # A batch larger than a shard has more answers to fit than a shard's steps are for.
        most = config.num_steps * math.ceil(rows.labels.num_rows / config.shard_size)
        for steps in range(most + 1):
            delta = start.masked_scatter(mask, values)
            logits = rows.logits(model, delta)
            loss = row_losses(logits, rows.labels).mean()
            own = activity(delta, rows.keys, rows.prompt)
            again, away = self._draw(earlier, generator), self._draw(context.unrelated, generator)
            near = torch.cat([own, earlier.sample_activities(delta, again)]) / output_norm
            far = context.unrelated.sample_activities(delta, away) / output_norm
            margins = activation_loss(near, far, config)
            missed = float(margins.detach())
            if not bool(torch.isfinite(loss + margins)):
                advice = way_out(model.hf.dtype, "lower learning_rate")
                raise EditRefused(f"wise: loss {float(loss.detach())} after {steps} steps; {advice}")
            lead = float(row_leads(logits.detach(), rows.labels, model.stops).min())
            if steps == most or (lead >= config.stop_margin and missed <= config.stop_missed):
                break
            optimizer.zero_grad(set_to_none=True)
            kept = context.answered.change(delta - start, again) / output_norm**2
            (loss + config.activation_weight * margins + config.keep_weight * kept).backward()
            optimizer.step()
        log.info(
            "%d requests, %d steps, loss %.4f, margins missed by %.4f, smallest lead %.2f",
            rows.labels.num_rows,
            steps,
            float(loss.detach()),
            missed,
            lead,
        )
        return delta.detach()

    def _draw(self, prompts: _Prompts, generator: torch.Generator) -> list[int]:
        return torch.randperm(len(prompts.keys), generator=generator)[: self.config.prompts_per_step].tolist()


def activation_loss(near: Tensor, far: Tensor, config: WiseConfig) -> Tensor:
    """L_a (eq. 4), means over unrelated prompts, edits, and their pairs.

    Args:
        near: (edits,) activities of the edits' prompts.
        far: (prompts,) those of unrelated ones; without any, only beta counts.
    """
    low = F.relu(config.beta - near).mean()
    if not len(far):
        return low
    between = F.relu(config.gamma - (near[:, None] - far)).mean()
    return F.relu(far - config.alpha).mean() + low + between
