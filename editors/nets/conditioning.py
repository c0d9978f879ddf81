"""A frozen model conditioned on a set of edits: attention over their codes, then FiLM of the upper blocks' outputs.

An edit is a set of context points in the sense of the conditional neural process (Garnelo et al. 2018, arXiv:1807.01613):
`x` is the state that predicts a token of the answer, with that token's place, and `y` is the token. Each point has a code
`r_i = enc(x_i, y_i)`; a query attends over the points (Kim et al. 2019, arXiv:1901.05761) and the code it gathers scales and
shifts states (FiLM, Perez et al. 2018, arXiv:1709.07871). A code of zero changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from editors.asking.tokens import continuation_of, encode_rows, pad_right
from editors.base import EditorConfig, TrainingEdit, Workbench
from editors.mechanics.answers import AnswerRows, Labels, answer_labels, at_positions, label_logits, row_leads
from editors.mechanics.descent import UpperBlocks, upper_blocks
from editors.mechanics.trace import hidden_of, trace
from editors.model import EditableModel
from editors.nets.episodes import divergences
from editors.nets.outer import Outer, train
from warehouse.errors import UsageError

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float, Int

PREFIX = "film."
#: Width of the sines that tell a point's place in its answer.
PLACE_WIDTH = 32
#: Training targets of random tokens are at most this long.
LONGEST_RANDOM = 8


class ConditioningConfig(EditorConfig):
    """Size and training of the conditioning networks.

    Attributes:
        film_layers: blocks whose outputs are scaled and shifted, ascending; points and queries read the first one's.
        keep_weight: of the divergence from the base on prompts that the edits shown have no part in.
        random_targets: share of training edits whose target is a string of random tokens.
    """

    film_layers: tuple[int, ...] = Field(min_length=1)
    code_width: PositiveInt = 512
    attention_dim: PositiveInt = 64
    film_updates: PositiveInt = 250
    film_batch: PositiveInt = 8
    film_learning_rate: PositiveFloat = 1e-3
    keep_weight: NonNegativeFloat = 1.0
    random_targets: NonNegativeFloat = 0.3

    def film_key(self) -> str:
        """What the networks depend on, for `Editor.preparation_key`."""
        return ":".join(f"{name}={getattr(self, name)}" for name in ConditioningConfig.model_fields)


@dataclass(frozen=True)
class Points:
    """Context points of queries, padded: of each row those of the edits that it is about.

    Attributes:
        bias: added to a point's score; minus infinity at padding.
    """

    keys: Float[Tensor, "rows points d_attention"]
    codes: Float[Tensor, "rows points d_model"]
    bias: Float[Tensor, "rows points"]

    @classmethod
    def stack(cls, rows: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Points:
        """From (keys, codes, bias) of each row."""
        keys, codes, bias = (list(parts) for parts in zip(*rows, strict=True))
        pad = torch.nn.utils.rnn.pad_sequence
        return cls(pad(keys, True), pad(codes, True), pad(bias, True, float("-inf")))

    def select(self, rows: Int[Tensor, " chosen"]) -> Points:
        return Points(self.keys[rows], self.codes[rows], self.bias[rows])


@dataclass(frozen=True)
class ConditionNet:
    """Encoder, attention and FiLM generators. No biases: of a zero code nothing comes.

    Attributes:
        weights: `enc1`, `enc2`, `asking`, `asked`, `null` and, of each block, `L.wide`, `L.gamma`, `L.beta`, `L.scale`.
    """

    weights: Mapping[str, Tensor]

    @classmethod
    def fresh(cls, d_model: int, config: ConditioningConfig, device: torch.device | str = "cpu") -> ConditionNet:
        """A net that was taught nothing; drawn on the CPU, so that it is the same on every device."""
        generator = torch.Generator().manual_seed(config.seed + 2)

        def normal(out: int, into: int) -> Tensor:
            return torch.randn(out, into, generator=generator) * into**-0.5

        # The code starts as the token's own embedding and the shift as a multiple of the code, zero at first: before any
        # training the conditioned model is the base, and one number a block is all that it takes to speak up.
        weights = {
            "enc1": normal(config.code_width, 2 * d_model),
            "enc2": torch.zeros(d_model, config.code_width),
            "asking": normal(config.attention_dim, d_model + PLACE_WIDTH),
            "asked": normal(config.attention_dim, d_model + PLACE_WIDTH),
            "null": torch.zeros(1),
        }
        for layer in config.film_layers:
            weights[f"{layer}.wide"] = normal(config.code_width, d_model)
            weights[f"{layer}.gamma"] = torch.zeros(d_model, config.code_width)
            weights[f"{layer}.beta"], weights[f"{layer}.scale"] = torch.eye(d_model), torch.zeros(1)
        return cls({name: tensor.to(device) for name, tensor in weights.items()})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> ConditionNet:
        return cls({k.removeprefix(PREFIX): t.float().to(device) for k, t in tensors.items() if k.startswith(PREFIX)})

    def tensors(self) -> dict[str, Tensor]:
        return {PREFIX + name: tensor for name, tensor in self.weights.items()}

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks with FiLM, ascending."""
        return tuple(sorted(int(name.split(".")[0]) for name in self.weights if name.endswith(".wide")))

    def encode(
        self, states: Float[Tensor, "points d_model"], embedded: Float[Tensor, "points d_model"]
    ) -> Float[Tensor, "points d_model"]:
        """Codes of points: the token's embedding, and what the state that predicts it adds."""
        said = _norm(embedded)
        return said + F.gelu(torch.cat([_norm(states), said], 1) @ self.weights["enc1"].t()) @ self.weights["enc2"].t()

    def keys(
        self, states: Float[Tensor, "points d_model"], place: Int[Tensor, " points"]
    ) -> Float[Tensor, "points d_attention"]:
        return torch.cat([_norm(states), waves(place)], 1) @ self.weights["asked"].t()

    def gather(
        self, states: Float[Tensor, "queries d_model"], place: Int[Tensor, " queries"], points: Points
    ) -> Float[Tensor, "queries d_model"]:
        """Codes that queries gather; the null point has the code zero, so attending to it leaves the state as it is."""
        asking = torch.cat([_norm(states), waves(place)], 1) @ self.weights["asking"].t()
        scores = torch.einsum("qa,qpa->qp", asking, points.keys) * asking.shape[1] ** -0.5 + points.bias
        share = torch.cat([self.weights["null"].expand(len(scores), 1), scores], 1).softmax(1)[:, 1:]
        return torch.einsum("qp,qpc->qc", share, points.codes)

    def film(
        self, layer: int, states: Float[Tensor, "n d_model"], code: Float[Tensor, "n d_model"]
    ) -> Float[Tensor, "n d_model"]:
        """`(1 + gamma) h + |h| beta`: the shift is in units of the state's size (root mean square)."""
        w = self.weights
        gamma = F.gelu(code @ w[f"{layer}.wide"].t()) @ w[f"{layer}.gamma"].t()
        beta = w[f"{layer}.scale"] * (code @ w[f"{layer}.beta"].t())
        return (1 + gamma) * states + states.square().mean(-1, keepdim=True).sqrt() * beta


def waves(place: Int[Tensor, " n"]) -> Float[Tensor, "n width"]:
    """Sines and cosines of places in an answer."""
    angles = place[:, None] * 100 ** (-torch.arange(0, PLACE_WIDTH, 2, device=place.device) / PLACE_WIDTH)
    return torch.cat([angles.sin(), angles.cos()], 1)


def _norm(states: Tensor) -> Tensor:
    return F.layer_norm(states, states.shape[-1:])


# ------------------------------------------------------------ edits as points


@dataclass(frozen=True)
class CodedEdit:
    """Keys and codes of one edit's points: one for each target token and one for the stop behind it."""

    keys: Float[Tensor, "points d_attention"]
    codes: Float[Tensor, "points d_model"]


def coded(
    model: EditableModel, net: ConditionNet, states: Float[Tensor, "rows tokens d_model"], labels: Labels, starts: Tensor
) -> list[CodedEdit]:
    """Points of each row.

    Args:
        states: output of the first FiLM block, with no edit shown.
        starts: (rows,) index of each row's last prompt token.
    """
    seen = states[labels.row, labels.at].float()
    codes = net.encode(seen, model.head_weight[labels.token].float())
    keys = net.keys(seen, labels.at - starts[labels.row])
    counts = torch.bincount(labels.row, minlength=labels.num_rows).tolist()
    return [CodedEdit(k, c) for k, c in zip(keys.split(counts), codes.split(counts), strict=True)]


@torch.no_grad()
def coded_requests(model: EditableModel, net: ConditionNet, rows: AnswerRows) -> list[CodedEdit]:
    """Codes of edits, from the base model's states: no edit shown has a part in another's."""
    site = model.anatomy.block.format(layer=net.layers[0])
    # No positions are told, so the hooks of patches below stay still.
    seen = trace(model, rows.ids, rows.mask, outputs=(site,))
    assert seen.final is not None
    return coded(model, net, seen.outputs[site], answer_labels(model, rows, seen.final), rows.last_prompt)


# ------------------------------------------------------------ training


@dataclass(frozen=True)
class _Rows:
    """Edits, questions that they answer and questions that they must not, on their way through the model.

    Attributes:
        upper: kept from the first FiLM block's output on.
        owner: the edit that each row belongs to; rows are edits first, then questions, then kept ones.
        labels: targets with their stops; of the kept rows where their answers are due.
    """

    upper: UpperBlocks
    owner: Tensor
    starts: Tensor
    labels: Labels
    num_edits: int
    num_asked: int


def _read(model: EditableModel, edits: Sequence[TrainingEdit], net: ConditionNet, draw: random.Random, share: float) -> _Rows:
    tokenizer, requests = model.tokenizer, [edit.request for edit in edits]
    stated = encode_rows(tokenizer, [r.prompt for r in requests], [continuation_of(r.target_new) for r in requests])
    answers = [row.ids[row.start :] for row in stated]
    answers = [
        [draw.randrange(model.vocab_size) for _ in range(draw.randint(1, LONGEST_RANDOM))] if draw.random() < share else answer
        for answer in answers
    ]
    rows = [(row.ids[: row.start], answer) for row, answer in zip(stated, answers, strict=True)]
    owner = list(range(len(edits)))
    for number, request in enumerate(requests):
        asked = [request.prompt, *request.rephrases]
        for prompt in draw.sample(asked, min(2, len(asked))):
            rows.append((list(tokenizer(prompt)["input_ids"]), answers[number]))
            owner.append(number)
    num_asked = len(rows) - len(edits)
    for number, edit in enumerate(edits):
        if edit.kept:
            prompt, answer = draw.choice(edit.kept)
            kept = encode_rows(tokenizer, [prompt], [continuation_of(answer)])[0]
            rows.append((kept.ids[: kept.start], kept.ids[kept.start :]))
            owner.append(number)
    ids, mask = pad_right([[*prompt, *answer] for prompt, answer in rows], model.pad_id)
    ids, mask = ids.to(model.device), mask.to(model.device)
    starts = torch.tensor([len(prompt) - 1 for prompt, _ in rows], device=ids.device)
    answer_rows = AnswerRows(ids, mask, starts, tuple(tuple(answer) for _, answer in rows))
    upper = upper_blocks(model, ids, mask, net.layers[0] + 1, answer_rows.positions())
    labels = answer_labels(model, answer_rows, upper.final)
    return _Rows(upper, torch.tensor(owner, device=ids.device), starts, labels, len(edits), num_asked)


def _conditioned(model: EditableModel, net: ConditionNet, rows: _Rows, points: Points) -> Float[Tensor, "labels vocab"]:
    """Logits at the labels; states from each prompt's last token on are modulated."""
    hidden, labels = rows.upper.hidden, rows.labels
    row, at = labels.row, labels.at
    code = net.gather(hidden[row, at].float(), at - rows.starts[row], points.select(row))

    def film(layer: int, states: Tensor) -> Tensor:
        if layer not in net.layers:
            return states
        return states.index_put((row, at), net.film(layer, states[row, at].float(), code).to(states.dtype))

    hidden = film(net.layers[0], hidden)
    with at_positions(model, rows.upper.positions):
        for layer, (path, call) in enumerate(rows.upper.calls.items(), start=net.layers[0] + 1):
            hidden = film(layer, hidden_of(model.hf.get_submodule(path)(hidden, **dict(call))))
    return label_logits(model, model.hf.get_submodule(model.anatomy.final_norm)(hidden), labels)


def _points_of(net: ConditionNet, model: EditableModel, rows: _Rows, draw: random.Random) -> tuple[Points, Labels]:
    """What each row is shown: its own edit, half of the times another one beside it; and labels with the edits' stops."""
    stated = rows.labels.select(torch.arange(rows.num_edits, device=rows.starts.device))
    edits = coded(model, net, rows.upper.hidden, stated, rows.starts)
    shown = []
    for owner in rows.owner.tolist():
        keys, codes = edits[owner].keys, edits[owner].codes
        bias = keys.new_zeros(len(keys))
        if draw.random() < 0.5 and len(edits) > 1:
            other = edits[draw.choice([n for n in range(len(edits)) if n != owner])]
            keys, codes = torch.cat([keys, other.keys]), torch.cat([codes, other.codes])
            bias = torch.cat([bias, bias.new_full((len(other.keys),), -draw.uniform(0, 8))])
        shown.append((keys, codes, bias))
    return Points.stack(shown), stated


def train_conditioning(
    model: EditableModel,
    edits: Sequence[TrainingEdit],
    aside: Sequence[TrainingEdit],
    config: ConditioningConfig,
    bench: Workbench,
) -> tuple[ConditionNet, dict[str, Any]]:
    """Negative log-likelihood of new answers, and divergence from the base on prompts to keep, over episodes.

    Returns:
        The net, and its card: loss curve, and the share of held-out edits' prompts answered exactly.

    Raises:
        ValueError: the first FiLM block is the model's last: no block would follow what points are read from.
    """
    for layer in config.film_layers:
        model.anatomy.module(model.hf, model.anatomy.block, layer)
    if min(config.film_layers) + 1 >= model.anatomy.num_layers(model.hf):
        raise UsageError(f"film_layers {config.film_layers} start at the last block of {model.name}; begin one lower")
    net = ConditionNet.fresh(model.head.weight.shape[1], config, model.device)
    trained = {name: tensor.requires_grad_(True) for name, tensor in net.weights.items()}

    def gather(number: int) -> dict[str, float]:
        draw = random.Random(f"film:{config.seed}:{number}")
        rows = _read(model, draw.sample(list(edits), min(len(edits), config.film_batch)), net, draw, config.random_targets)
        points, stated = _points_of(net, model, rows, draw)
        logits = _conditioned(model, net, rows, points)
        asked = (rows.labels.row >= rows.num_edits) & (rows.labels.row < rows.num_edits + rows.num_asked)
        # A question's stop is its edit's: what the code says, not what the base would put behind this prompt.
        tokens = rows.labels.token.clone()
        ends = {int(r): int(t) for r, t, s in zip(stated.row, stated.token, stated.is_stop, strict=True) if s}
        for i in (asked & rows.labels.is_stop).nonzero()[:, 0].tolist():
            tokens[i] = ends[int(rows.owner[rows.labels.row[i]])]
        edited = F.cross_entropy(logits[asked], tokens[asked])
        kept = rows.labels.row >= rows.num_edits + rows.num_asked
        with torch.no_grad():
            base = label_logits(model, rows.upper.final, rows.labels)
        moved = divergences(base[kept], logits[kept]).mean() if bool(kept.any()) else logits.new_zeros(())
        (edited + config.keep_weight * moved).backward()
        return {"loss": float(edited.detach()), "divergence": float(moved.detach())}

    # One number moves a whole block's shift: it may go faster than the matrices.
    rates = {name: config.film_learning_rate * (20 if name.endswith(".scale") else 1) for name in trained}
    outer = Outer(trained, rates, clip=1.0)
    curve = train(outer, config.film_updates, bench, gather)
    for tensor in trained.values():
        tensor.requires_grad_(False)
    return net, {"curve": curve, **_held_out(model, net, aside, config)}


@torch.no_grad()
def _held_out(
    model: EditableModel, net: ConditionNet, aside: Sequence[TrainingEdit], config: ConditioningConfig
) -> dict[str, float]:
    """Exact matches behind held-out edits' own and rephrased prompts, each shown its own edit."""
    right, total = 0, 0
    draw = random.Random(f"film-held:{config.seed}")
    for at in range(0, len(aside), 8):
        rows = _read(model, aside[at : at + 8], net, draw, 0.0)
        points, _ = _points_of(net, model, rows, draw)
        leads = row_leads(_conditioned(model, net, rows, points), rows.labels, model.stops.to(model.device))
        asked = leads[rows.num_edits : rows.num_edits + rows.num_asked]
        right, total = right + int((asked > 0).sum()), total + len(asked)
    return {"held_out_exact": right / max(1, total)}
