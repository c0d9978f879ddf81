"""SERAC's counterfactual model: a small transformer of the base's vocabulary that answers a question from a stated edit.

It reads `edit prompt, edit answer, question, answer so far` and mixes two distributions: the base's own head over its
states, and a pointer into the edit's answer (See et al. 2017, arXiv:1704.04368, equation 9), so that it can say words
that no training edit had. Token embeddings and head are the base model's and are not stored.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from editors.asking.tokens import continuation_of, encode_rows
from editors.base import EditorConfig, TrainingEdit, Workbench
from editors.model import EditableModel
from editors.nets.outer import Outer, train

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Bool, Float, Int

#: Parts of a row. Positions are counted from the start of each part, those of `ANSWERING` from the question's last token:
#: what answers place `p` then stands at the same position as place `p` of the edit's answer.
EDIT_PROMPT, EDIT_ANSWER, QUESTION, ANSWERING = range(4)
NUM_HEADS = 4
PREFIX = "counterfactual."


class CounterfactualConfig(EditorConfig):
    """Size and training of the counterfactual model.

    Attributes:
        random_answers: share of training rows whose answer is a string of random tokens; copying is then all there is
            to learn, for any word and up to `longest_answer` tokens.
    """

    answer_width: PositiveInt = 128
    answer_layers: PositiveInt = 2
    answer_updates: PositiveInt = 300
    answer_batch: PositiveInt = 32
    answer_learning_rate: PositiveFloat = 2e-3
    random_answers: PositiveFloat = 0.5
    longest_answer: PositiveInt = 16

    def answer_key(self) -> str:
        """What a counterfactual model depends on, for `Editor.preparation_key`."""
        return ":".join(f"{name}={getattr(self, name)}" for name in CounterfactualConfig.model_fields)


@dataclass(frozen=True)
class StatedEdit:
    """An edit as tokens; `answer` ends with the stop behind the target and the end of text."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class StatedRows:
    """Rows for the model, padded on the right.

    Attributes:
        part: which part of its row a token is in; -1 for padding.
        place: position inside the part.
    """

    ids: Int[Tensor, "rows tokens"]
    part: Int[Tensor, "rows tokens"]
    place: Int[Tensor, "rows tokens"]


def reading_of(
    statements: Sequence[StatedEdit], questions: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int
) -> StatedRows:
    """Lay out rows; each question has a token or more."""
    rows = []
    for stated, question, answer in zip(statements, questions, answers, strict=True):
        parts = (stated.prompt, stated.answer, question[:-1], (*question[-1:], *answer))
        rows.append([(token, part, place) for part, ids in enumerate(parts) for place, token in enumerate(ids)])
    longest = max(map(len, rows))
    block = torch.tensor([row + [(pad_id, -1, 0)] * (longest - len(row)) for row in rows])
    return StatedRows(block[..., 0], block[..., 1], block[..., 2])


@dataclass(frozen=True)
class CounterfactualModel:
    """Pre-norm transformer blocks between two projections, and a pointer.

    Attributes:
        weights: named tensors without prefix: `down`, `up`, `parts`, `layerN.{qkv,out,wide,narrow}`, `asking`, `asked`, `gate`.
    """

    weights: Mapping[str, Tensor]

    @classmethod
    def fresh(cls, d_model: int, config: CounterfactualConfig, device: torch.device | str = "cpu") -> CounterfactualModel:
        """A net that was taught nothing; drawn on the CPU, so that it is the same on every device."""
        generator, width = torch.Generator().manual_seed(config.seed + 1), config.answer_width

        def normal(out: int, into: int, scale: float = 1.0) -> Tensor:
            return torch.randn(out, into, generator=generator) * scale * into**-0.5

        weights = {
            "down": normal(width, d_model),
            "up": normal(d_model, width),
            "parts": normal(4, width),
            "asking": normal(width, width),
            "asked": normal(width, width),
            "gate": torch.zeros(1, width),
        }
        for layer in range(config.answer_layers):
            # Each block starts small, so that the first steps see what the pointer needs: parts and places.
            weights |= {
                f"layer{layer}.qkv": normal(3 * width, width),
                f"layer{layer}.out": normal(width, width, 0.2),
                f"layer{layer}.wide": normal(2 * width, width),
                f"layer{layer}.narrow": normal(width, 2 * width, 0.2),
            }
        return cls({name: tensor.to(device) for name, tensor in weights.items()})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> CounterfactualModel:
        return cls({k.removeprefix(PREFIX): t.float().to(device) for k, t in tensors.items() if k.startswith(PREFIX)})

    def tensors(self) -> dict[str, Tensor]:
        return {PREFIX + name: tensor for name, tensor in self.weights.items()}

    def log_probs(
        self, model: EditableModel, reading: StatedRows, wanted: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "places vocab"]:
        """Log-probabilities of the token behind each wanted place, rows in order; fp32."""
        device, w = model.device, self.weights
        ids, part, place = (t.to(device) for t in (reading.ids, reading.part, reading.place))
        embedding = model.parameter(f"{model.anatomy.embedding}.weight")
        read = F.layer_norm(embedding[ids].float(), (embedding.shape[1],)) @ w["down"].t()
        hidden = read + w["parts"][part.clamp(min=0)] + _waves(place, read.shape[-1])
        real, order = part >= 0, torch.arange(ids.shape[1], device=device)
        # A padded token sees itself, or its row of the softmax would be empty.
        seen = (real[:, None, :] & (order[None, :] <= order[:, None])) | torch.eye(len(order), dtype=torch.bool, device=device)
        for layer in range(sum(name.endswith(".qkv") for name in w)):
            hidden = hidden + self._attention(_norm(hidden), seen, layer)
            hidden = hidden + F.gelu(_norm(hidden) @ w[f"layer{layer}.wide"].t()) @ w[f"layer{layer}.narrow"].t()
        hidden = _norm(hidden)
        row, at = wanted.to(device).nonzero(as_tuple=True)
        asking, asked = hidden[row, at] @ w["asking"].t(), hidden @ w["asked"].t()
        scores = torch.einsum("pw,ptw->pt", asking, asked[row]) * asking.shape[-1] ** -0.5
        pointer = scores.masked_fill((part != EDIT_ANSWER)[row], float("-inf")).log_softmax(-1)
        gate = hidden[row, at] @ w["gate"].t()
        said = (hidden[row, at] @ w["up"].t()) @ model.head_weight.float().t()
        own = said.log_softmax(-1) + F.logsigmoid(-gate)
        copied = torch.zeros_like(own).scatter_add(1, ids[row], pointer.exp()) * gate.sigmoid()
        return torch.logaddexp(own, copied.clamp(min=1e-30).log())

    def _attention(self, hidden: Tensor, seen: Tensor, layer: int) -> Tensor:
        rows, tokens, width = hidden.shape
        parts = (hidden @ self.weights[f"layer{layer}.qkv"].t()).view(rows, tokens, 3, NUM_HEADS, width // NUM_HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None])
        return mixed.transpose(1, 2).reshape(rows, tokens, width) @ self.weights[f"layer{layer}.out"].t()

    @torch.no_grad()
    def write(
        self,
        model: EditableModel,
        statements: Sequence[StatedEdit],
        questions: Sequence[Sequence[int]],
        limit: int,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Answers to questions, token by token, up to the end of text: the likeliest, or drawn by `generator`."""
        answers: list[list[int]] = [[] for _ in statements]
        running = list(range(len(statements)))
        for _ in range(limit):
            reading = reading_of(
                [statements[i] for i in running], [questions[i] for i in running], [answers[i] for i in running], model.pad_id
            )
            last = (reading.part >= 0).sum(1) - 1
            wanted = torch.arange(reading.ids.shape[1]) == last[:, None]
            found = self.log_probs(model, reading, wanted)
            said = found.argmax(-1) if generator is None else torch.multinomial(found.exp().cpu(), 1, generator=generator)[:, 0]
            for i, token in zip(running, said.tolist(), strict=True):
                answers[i].append(token)
            running = [i for i in running if answers[i][-1] != end_id(model)]
            if not running:
                break
        return answers


def end_id(model: EditableModel) -> int:
    """What an answer of the counterfactual model ends with."""
    found = model.tokenizer.eos_token_id
    return found if isinstance(found, int) else model.pad_id


def _norm(hidden: Tensor) -> Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:])


def _waves(place: Tensor, width: int) -> Tensor:
    """Sines and cosines of positions (Vaswani et al. 2017, section 3.5): no longest row."""
    rates = 10_000 ** (-torch.arange(0, width, 2, device=place.device) / width)
    angles = place[..., None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


# ------------------------------------------------------------ training


@dataclass(frozen=True)
class _Lesson:
    statement: StatedEdit
    questions: tuple[tuple[int, ...], ...]


def _lessons(model: EditableModel, edits: Sequence[TrainingEdit]) -> list[_Lesson]:
    requests = [edit.request for edit in edits]
    stated = encode_rows(model.tokenizer, [r.prompt for r in requests], [continuation_of(r.target_new) for r in requests])
    lessons = []
    for request, row in zip(requests, stated, strict=True):
        asked = [tuple(ids) for ids in model.tokenizer([request.prompt, *request.rephrases])["input_ids"]]
        lessons.append(_Lesson(StatedEdit(tuple(row.ids[: row.start]), tuple(row.ids[row.start :])), tuple(asked)))
    return lessons


def train_counterfactual(
    model: EditableModel,
    edits: Sequence[TrainingEdit],
    aside: Sequence[TrainingEdit],
    config: CounterfactualConfig,
    bench: Workbench,
) -> tuple[CounterfactualModel, dict[str, Any]]:
    """Negative log-likelihood of the edit's answer behind its own and its rephrased prompts.

    Returns:
        The model, and its card: loss curve, and the share of held-out rephrases answered exactly.
    """
    net = CounterfactualModel.fresh(model.head.weight.shape[1], config, model.device)
    trained = {name: tensor.requires_grad_(True) for name, tensor in net.weights.items()}
    lessons, end = _lessons(model, edits), end_id(model)
    stops = [token for token in model.stops.nonzero()[:, 0].tolist() if token != end] or [end]

    def gather(number: int) -> dict[str, float]:
        draw = random.Random(f"answers:{config.seed}:{number}")
        statements, questions = [], []
        for lesson in draw.choices(lessons, k=config.answer_batch):
            answer = lesson.statement.answer
            if draw.random() < config.random_answers:
                length = draw.randint(1, config.longest_answer)
                answer = tuple(draw.randrange(model.vocab_size) for _ in range(length))
            # Which stop the base prefers is settled when an edit arrives; here any will do.
            statements.append(StatedEdit(lesson.statement.prompt, (*answer, draw.choice(stops), end)))
            questions.append(draw.choice(lesson.questions))
        loss = _answer_loss(model, net, statements, questions)
        loss.backward()
        return {"loss": float(loss.detach())}

    outer = Outer(trained, dict.fromkeys(trained, config.answer_learning_rate), clip=1.0)
    curve = train(outer, config.answer_updates, bench, gather)
    for tensor in trained.values():
        tensor.requires_grad_(False)
    return net, {"curve": curve, "held_out_exact": _share_exact(model, net, _lessons(model, aside), stops[0])}


def _answer_loss(
    model: EditableModel, net: CounterfactualModel, statements: Sequence[StatedEdit], questions: Sequence[Sequence[int]]
) -> Tensor:
    """The mean over all tokens of the answers, stops and ends included."""
    answers = [s.answer[:-1] for s in statements]
    reading = reading_of(statements, questions, answers, model.pad_id)
    labels = torch.tensor([token for s in statements for token in s.answer], device=model.device)
    return F.nll_loss(net.log_probs(model, reading, reading.part == ANSWERING), labels)


@torch.no_grad()
def _share_exact(model: EditableModel, net: CounterfactualModel, lessons: Sequence[_Lesson], stop: int) -> float:
    rows = [
        (StatedEdit(lesson.statement.prompt, (*lesson.statement.answer, stop, end_id(model))), question)
        for lesson in lessons
        for question in lesson.questions[:3]
    ]
    right = 0
    for at in range(0, len(rows), 64):
        part = rows[at : at + 64]
        limit = max(len(s.answer) for s, _ in part)
        said = net.write(model, [s for s, _ in part], [q for _, q in part], limit)
        right += sum(tuple(found) == s.answer for found, (s, _) in zip(said, part, strict=True))
    return right / max(1, len(rows))
