"""Is a prompt about an edited fact? A small net on the frozen base model's states, trained on training edits.

SERAC's scope classifier in its embedding form (Mitchell et al. 2022, arXiv:2206.06520, section 3): both texts are
embedded and their likeness decides, so a memory of thousands of edits costs one matrix product. Prompts alone are
embedded: what an edit says has no part in where it applies.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from editors.asking.tokens import pad_right
from editors.base import EditorConfig, TrainingEdit, Workbench
from editors.mechanics.trace import trace
from editors.model import EditableModel
from editors.nets.episodes import hold_out
from editors.nets.outer import Outer, train

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Bool, Float

#: A prompt is in scope from this probability on.
IN_SCOPE = 0.5
#: The likeness of a prompt with itself is one but for rounding; the threshold stays below.
MOST_COSINE = 0.995
#: Prompts read in one pass.
ROWS_PER_PASS = 64


class ScopeConfig(EditorConfig):
    """Size and training of a scope classifier; every editor that needs one takes these settings.

    Attributes:
        token_layer: block whose output is pooled over the prompt: it still knows the subject's tokens.
        prompt_layer: block whose output is read at the prompt's last token: it knows what is asked.
        scope_edits: training edits read; states of all of them are held at once.
        scope_heads: ways in which the tokens are pooled, each with its own weights.
    """

    token_layer: NonNegativeInt
    prompt_layer: NonNegativeInt
    scope_heads: PositiveInt = 4
    scope_width: PositiveInt = 512
    scope_dim: PositiveInt = 128
    scope_edits: PositiveInt = 1_000
    scope_updates: PositiveInt = 600
    scope_batch: PositiveInt = 64
    scope_learning_rate: PositiveFloat = 1e-3
    held_share: PositiveFloat = 0.15

    def scope_key(self) -> str:
        """What a classifier depends on, for `Editor.preparation_key`."""
        names = [*ScopeConfig.model_fields]
        return ":".join(f"{name}={getattr(self, name)}" for name in names)


@dataclass(frozen=True)
class Features:
    """What the frozen model says of prompts.

    Attributes:
        tokens: states of all tokens at the token layer; `mask` is true at tokens of the prompt.
        last: states of the last tokens at the prompt layer.
    """

    tokens: Float[Tensor, "rows tokens d_model"]
    mask: Bool[Tensor, "rows tokens"]
    last: Float[Tensor, "rows d_model"]

    def select(self, rows: Sequence[int] | Tensor) -> Features:
        index = torch.as_tensor(rows, dtype=torch.long, device=self.last.device)
        mask = self.mask[index]
        width = int(mask.sum(1).max()) if len(index) else 0
        return Features(self.tokens[index, :width], mask[:, :width], self.last[index])


@dataclass(frozen=True)
class ScopeNet:
    """The trained net: attention over the tokens' states, joined with the last state, then two layers.

    Attributes:
        pool: one query for each head.
        line: `(a, b)` of `sigmoid(a cos(e, e') + b)`, the probability that two prompts are about one fact.
    """

    pool: Float[Tensor, "heads d_model"]
    inner: Float[Tensor, "width d_joined"]
    inner_bias: Float[Tensor, " width"]
    outer: Float[Tensor, "dim width"]
    line: Float[Tensor, 2]

    @classmethod
    def fresh(cls, d_model: int, config: ScopeConfig) -> ScopeNet:
        generator = torch.Generator().manual_seed(config.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

        joined = (config.scope_heads + 1) * d_model
        return cls(
            normal(config.scope_heads, d_model),
            normal(config.scope_width, joined),
            torch.zeros(config.scope_width),
            normal(config.scope_dim, config.scope_width),
            torch.tensor([10.0, -7.0]),
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> ScopeNet:
        return cls(**{f.name: tensors[f"scope.{f.name}"].float().to(device) for f in fields(cls)})

    def tensors(self) -> dict[str, Tensor]:
        return {f"scope.{f.name}": getattr(self, f.name) for f in fields(self)}

    def embed(self, features: Features) -> Float[Tensor, "rows dim"]:
        """Unit vectors; a prompt's does not depend on what else is in the batch, but for rounding."""
        tokens = F.layer_norm(features.tokens, features.tokens.shape[-1:])
        weights = (tokens @ self.pool.t()).masked_fill(~features.mask[..., None], float("-inf")).softmax(1)
        pooled = torch.einsum("rth,rtd->rhd", weights, tokens).flatten(1)
        joined = torch.cat([pooled, F.layer_norm(features.last, features.last.shape[-1:])], 1)
        return F.normalize(F.gelu(joined @ self.inner.t() + self.inner_bias) @ self.outer.t(), dim=-1)

    def logits(self, left: Float[Tensor, "left dim"], right: Float[Tensor, "right dim"]) -> Float[Tensor, "left right"]:
        """Log-odds that prompts are about one fact."""
        return self.line[0] * (left @ right.t()) + self.line[1]

    @property
    def cosine(self) -> float:
        """The likeness from which on two prompts are about one fact; a prompt and itself always are."""
        scale, shift = self.line.tolist()
        return min(MOST_COSINE, -shift / scale) if scale > 0 else MOST_COSINE


@torch.no_grad()
def features_of(model: EditableModel, prompts: Sequence[str], token_layer: int, prompt_layer: int) -> Features:
    """Read prompts with the model as it stands; those longer than its context lose their left end.

    Raises:
        UnsupportedModel: a layer that the model does not have.
    """
    block = model.anatomy.block
    for layer in (token_layer, prompt_layer):
        model.anatomy.module(model.hf, block, layer)
    sites = (block.format(layer=token_layer), block.format(layer=prompt_layer))
    limit = int(getattr(model.hf.config, "max_position_embeddings", 0)) or None
    encoded = [
        (list(ids) or [model.pad_id])[-limit if limit else None :] for ids in model.tokenizer(list(prompts))["input_ids"]
    ]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    longest = max(map(len, encoded), default=0)
    width = model.head.weight.shape[1]
    tokens, last = torch.zeros(len(encoded), longest, width), torch.zeros(len(encoded), width)
    for at in range(0, len(order), ROWS_PER_PASS):
        chosen = order[at : at + ROWS_PER_PASS]
        ids, mask = pad_right([encoded[i] for i in chosen], model.pad_id)
        seen = trace(model, ids, mask, outputs=sites, stop_after=sites[token_layer < prompt_layer])
        pooled, asked = (seen.outputs[site].float().cpu() for site in sites)
        tokens[chosen, : ids.shape[1]] = pooled
        last[chosen] = asked[torch.arange(len(chosen)), mask.sum(1) - 1]
    lengths = torch.tensor([len(ids) for ids in encoded])
    return Features(tokens, torch.arange(longest) < lengths[:, None], last)


# ------------------------------------------------------------ training


@dataclass(frozen=True)
class _Example:
    """A training edit as numbers of prompts: its own, rephrases, and prompts that it must not answer."""

    own: int
    rephrased: tuple[int, ...]
    kept: tuple[int, ...]


class _Prompts:
    """Prompts numbered once each, with the edit whose fact each is about; -1: none of them.

    A prompt kept for one edit may be another's own or one of its rephrases, so all of these are known from the start.
    """

    def __init__(self, edits: Sequence[TrainingEdit]) -> None:
        self.texts: list[str] = []
        self.fact: list[int] = []
        self._number: dict[str, int] = {}
        self._about = {text: n for n, e in enumerate(edits) for text in (*e.request.rephrases, e.request.prompt)}

    def add(self, text: str) -> int:
        number = self._number.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
            self.fact.append(self._about.get(text, -1))
        return number


def _examples(edits: Sequence[TrainingEdit], prompts: _Prompts, seed: int) -> list[_Example]:
    """Each edit with a few rephrases, its kept prompts, and its subject asked for two relations of others.

    Few subjects of a corpus have two facts; the made questions teach that one subject is not one fact.
    """
    draw, found = random.Random(f"scope:{seed}"), []
    for edit in edits:
        request = edit.request
        own = prompts.add(request.prompt)
        rephrases = draw.sample(request.rephrases, min(5, len(request.rephrases)))
        kept = [prompts.add(text) for text, _ in draw.sample(edit.kept, min(3, len(edit.kept)))]
        for other in draw.sample(list(edits), min(6, len(edits))):
            theirs = other.request
            asked = draw.choice((theirs.prompt, *theirs.rephrases))
            if theirs.relation != request.relation and theirs.subject in asked and len(kept) < 5:
                kept.append(prompts.add(asked.replace(theirs.subject, request.subject)))
        found.append(_Example(own, tuple(prompts.add(text) for text in rephrases), tuple(kept)))
    return found


def train_scope(
    model: EditableModel, edits: Sequence[TrainingEdit], config: ScopeConfig, bench: Workbench
) -> tuple[ScopeNet, dict[str, Any]]:
    """Binary cross-entropy over pairs (edit, prompt) of a batch: all that are about one fact, and each edit's hardest others.

    Returns:
        The net, and its card: loss curve, and precision and recall of the router on held-out subjects.

    Raises:
        ValueError: training edits of fewer than two subjects.
    """
    learnt, aside = hold_out(edits, config.held_share, config.seed)
    draw = random.Random(f"scope-edits:{config.seed}")
    learnt = draw.sample(learnt, min(len(learnt), config.scope_edits))
    aside = draw.sample(aside, min(len(aside), 200))
    prompts, others = _Prompts(learnt), _Prompts(aside)
    examples, held = _examples(learnt, prompts, config.seed), _examples(aside, others, config.seed)
    bench.progress(0, config.scope_updates, f"reading {len(prompts.texts) + len(others.texts)} prompts")
    features = features_of(model, prompts.texts, config.token_layer, config.prompt_layer)
    net = ScopeNet.fresh(model.head.weight.shape[1], config)
    trained = {name: tensor.requires_grad_(True) for name, tensor in net.tensors().items()}
    # The line moves on the scale of tens, the weights on that of tenths.
    rates = {name: config.scope_learning_rate * (20 if name == "scope.line" else 1) for name in trained}

    def gather(number: int) -> dict[str, float]:
        chosen = random.Random(f"{config.seed}:{number}").sample(examples, min(len(examples), config.scope_batch))
        loss = _pair_loss(net, features, prompts.fact, chosen)
        loss.backward()
        return {"loss": float(loss.detach())}

    curve = train(Outer(trained, rates, clip=1.0), config.scope_updates, bench, gather)
    for tensor in trained.values():
        tensor.requires_grad_(False)
    routed = router_quality(net, features_of(model, others.texts, config.token_layer, config.prompt_layer), others.fact, held)
    card = {"curve": curve, "edits": len(learnt), "held_out_edits": len(aside), "prompts": len(prompts.texts), **routed}
    return net, card


def _pair_loss(net: ScopeNet, features: Features, fact: Sequence[int], chosen: Sequence[_Example]) -> Tensor:
    asked = list(dict.fromkeys(n for e in chosen for n in (*e.rephrased, *e.kept)))
    rows = [e.own for e in chosen]
    embedded = net.embed(features.select([*rows, *asked]))
    logits = net.logits(embedded[: len(rows)], embedded[len(rows) :])
    facts = torch.tensor(fact)
    same = facts[rows][:, None] == facts[asked][None, :]
    losses = F.binary_cross_entropy_with_logits(logits, same.float(), reduction="none")
    # The hardest negatives of each edit carry the weight: the easy ones are thousands.
    hard = losses.masked_fill(same, 0).topk(min(8, losses.shape[1]), dim=1).values
    return 2 * losses[same].mean() + hard.sum(1).mean() if bool(same.any()) else hard.sum(1).mean()


@torch.no_grad()
def router_quality(net: ScopeNet, features: Features, fact: Sequence[int], held: Sequence[_Example]) -> dict[str, float]:
    """Precision and recall of the nearest edit in a memory of all held-out edits.

    A prompt is routed rightly where it is sent to the edit of its own fact; prompts of no edit should pass.
    """
    rows = [e.own for e in held]
    asked = sorted({n for e in held for n in (*e.rephrased, *e.kept)} - set(rows))
    embedded = net.embed(features)
    cosine, place = (embedded[asked] @ embedded[rows].t()).max(1)
    sent, facts = cosine >= net.cosine, torch.tensor(fact)
    mine = facts[asked] >= 0
    right = sent & (facts[rows][place] == facts[asked])
    return {
        "recall": float(right.sum() / mine.sum().clamp(min=1)),
        "precision": float(right.sum() / sent.sum().clamp(min=1)),
        "false_alarms": float((sent & ~mine).sum() / (~mine).sum().clamp(min=1)),
    }
