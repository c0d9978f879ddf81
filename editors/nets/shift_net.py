"""KnowledgeEditor's net: from a question, its present answer and the new one to gates on a gradient, in low-rank form.

De Cao et al. 2021, section 3.2. For a matrix of m rows (outputs) and n columns (inputs) with gradient G
    Delta = s sigmoid(eta) (A * G + B),  A = softmax(alpha) gamma^T,  B = softmax(beta) delta^T,
an element-wise product. A has rank one, so with G = D U^T the product is (softmax(alpha) * D)(gamma * U)^T: the shift has
one rank for each token of the gradient and one for B, and is never written out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from editors.draws import seeded
from editors.mechanics.gradients import TokenFactors
from editors.patches.weight import LowRank

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: Norm of each row of a net's last matrix at the start: small, so that a fresh net's shift is a plain gradient step.
FIRST_NORM = 0.05
#: What the three parts of a condition are: the question, its present answer, the new one.
PARTS = 3


@dataclass(frozen=True)
class Condition:
    """Token ids of a question, of the model's present answer to it (may be empty) and of the new answer."""

    question: tuple[int, ...]
    present: tuple[int, ...]
    new: tuple[int, ...]


@dataclass(frozen=True)
class Units:
    """What the net's raw outputs are multiplied by, so that they are of order one in every matrix.

    Attributes:
        gamma: rows of the matrix times its first rate, over the middle of `s sigmoid`: with alpha uniform and gamma at
            minus one unit the shift is a gradient step of that rate. Without it softmax over long rows kills the gates.
        delta: of B's columns.
    """

    gamma: float
    delta: float


@dataclass(frozen=True)
class ShiftGates:
    """One edit's gates on one matrix: `rows` = softmax(alpha) and `offset_rows` = softmax(beta) (m,), `columns` = gamma
    and `offset_columns` = delta (n,), `scale` = s sigmoid(eta)."""

    rows: Tensor
    columns: Tensor
    offset_rows: Tensor
    offset_columns: Tensor
    scale: Tensor

    def shift(self, factors: TokenFactors) -> LowRank:
        """The matrix's change for a gradient given by its factors."""
        left = torch.cat([factors.gradients.t() * self.rows[:, None], self.offset_rows[:, None]], dim=1)
        right = torch.cat([factors.inputs.t() * self.columns[:, None], self.offset_columns[:, None]], dim=1)
        return LowRank(self.scale * left, right)


class ShiftNet(nn.Module):
    """A bidirectional LSTM over the condition's tokens, a code from its last states, and a small net for each matrix.

    Args:
        shapes: path -> (d_out, d_in) of the matrices.
        units: path -> units of the outputs.
        width: of the token embeddings, which are the model's own and are given with each call.
        max_scale: s, the bound on the scale.
        seed: of the first weights.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        units: Mapping[str, Units],
        width: int,
        *,
        lstm: int,
        code: int,
        hidden: int,
        max_scale: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.shapes, self.units, self.max_scale = dict(shapes), dict(units), max_scale
        with seeded(seed):
            self.part = nn.Embedding(PARTS, width)
            self.lstm = nn.LSTM(width, lstm, batch_first=True, bidirectional=True)
            self.code = nn.Sequential(nn.Linear(2 * lstm, code), nn.Tanh())
            self.gates = nn.ModuleList([_gate_net(code, hidden, *shape) for shape in self.shapes.values()])

    def forward(self, conditions: Sequence[Condition], embedding: Tensor) -> list[dict[str, ShiftGates]]:
        """Gates of every edit.

        Args:
            embedding: (vocab, width) the model's token embeddings; their size is evened out here.
        """
        codes = self._codes(conditions, embedding)
        raw = {path: net(codes) for path, net in zip(self.shapes, self.gates, strict=True)}
        return [{path: self._gates(path, raw[path][i]) for path in self.shapes} for i in range(len(conditions))]

    def _codes(self, conditions: Sequence[Condition], embedding: Tensor) -> Float[Tensor, "edits code"]:
        rows = [torch.tensor([*c.question, *c.present, *c.new], device=embedding.device) for c in conditions]
        kinds = [
            torch.tensor([0] * len(c.question) + [1] * len(c.present) + [2] * len(c.new), device=embedding.device)
            for c in conditions
        ]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = embedding[pad_sequence(rows, batch_first=True)].float()
        tokens = tokens / embedding.float().square().mean().sqrt() + self.part(pad_sequence(kinds, batch_first=True))
        packed = pack_padded_sequence(tokens, lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return self.code(torch.cat([last[0], last[1]], dim=-1))

    def _gates(self, path: str, raw: Float[Tensor, " outputs"]) -> ShiftGates:
        (rows, columns), unit = self.shapes[path], self.units[path]
        alpha, gamma, beta, delta, eta = raw.split([rows, columns, rows, columns, 1])
        return ShiftGates(
            alpha.softmax(-1),
            unit.gamma * (gamma - 1),
            beta.softmax(-1),
            unit.delta * delta,
            self.max_scale * eta.squeeze(0).sigmoid(),
        )


def _gate_net(code: int, hidden: int, rows: int, columns: int) -> nn.Sequential:
    """Weight-normalised: code -> tanh -> alpha, gamma, beta, delta and eta of one matrix."""
    last = nn.Linear(hidden, 2 * (rows + columns) + 1)
    nn.init.zeros_(last.bias)
    with torch.no_grad():
        last.weight.mul_(FIRST_NORM / last.weight.norm(dim=1, keepdim=True))
    return nn.Sequential(weight_norm(nn.Linear(code, hidden)), nn.Tanh(), weight_norm(last))


def units_of(shape: tuple[int, int], norm: float, gradient: float, first_step: float, max_scale: float) -> Units:
    """Units with which a fresh net moves a matrix by `first_step` of its norm for a gradient of the usual norm.

    Args:
        norm, gradient: Frobenius norms of the matrix and of its usual gradient.
    """
    (rows, columns), middle = shape, max_scale / 2
    step = first_step * norm
    # Uniform rows: softmax(beta) delta^T has norm |delta| / sqrt(rows).
    return Units(rows * step / max(gradient, 1e-12) / middle, step * (rows / columns) ** 0.5 / middle)
