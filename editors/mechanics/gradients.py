"""The gradient of answers' losses at chosen projections, token by token, and low-rank terms added to projections.

A projection's gradient is sum_t d_t u_t^T, with u_t its input and d_t the gradient at its output: two thin factors,
whatever the storage order of the weight (GPT-2's Conv1D or `nn.Linear`). Weights never ask for gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editors.mechanics.answers import Labels, label_logits
from editors.mechanics.descent import UpperBlocks
from editors.model import EditableModel
from editors.patches.weight import LowRank

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float, Int

#: All projections of the feed-forward, or the one back to the residual stream alone.
Projections = Literal["mlp", "mlp_out"]
#: Every token that the loss depends on, or those alone at which a label is predicted.
Tokens = Literal["all", "answers"]


def projection_paths(model: EditableModel, layers: Sequence[int], which: Projections) -> list[str]:
    """Module paths of the feed-forward projections of some layers, in the order in which they run.

    Raises:
        UnsupportedModel: a layer that the model does not have.
    """
    anatomy, paths = model.anatomy, []
    for layer in sorted(layers):
        for path in (*(anatomy.mlp_in if which == "mlp" else ()), anatomy.mlp_out):
            anatomy.module(model.hf, path, layer)
            paths.append(path.format(layer=layer))
    return paths


def weight_shape(model: EditableModel, path: str) -> tuple[int, int]:
    """(d_out, d_in) of a projection, whatever its storage order."""
    stored = model.parameter(f"{path}.weight")
    first, second = stored.shape
    return (first, second) if isinstance(model.hf.get_submodule(path), nn.Linear) else (second, first)


@dataclass(frozen=True)
class TokenFactors:
    """Inputs and output gradients of one projection at the tokens that have a gradient; fp32, row after row.

    Attributes:
        row: the row of each token.
    """

    inputs: Float[Tensor, "tokens d_in"]
    gradients: Float[Tensor, "tokens d_out"]
    row: Int[Tensor, " tokens"]

    def of_rows(self, start: int, stop: int) -> TokenFactors:
        """Tokens of the rows from `start` to before `stop`."""
        kept = (self.row >= start) & (self.row < stop)
        return TokenFactors(self.inputs[kept], self.gradients[kept], self.row[kept])


def token_factors(
    model: EditableModel, upper: UpperBlocks, labels: Labels, paths: Sequence[str], tokens: Tokens = "all"
) -> dict[str, TokenFactors]:
    """Factors of the gradient of the *sum over all labels* of their losses, for the model as it stands.

    The sum makes a row's factors its own: they depend neither on the other rows of the pass nor on their number, and the
    first token of a long answer pulls as hard as that of a short one (a mean would divide its pull by the length).
    Tokens whose input or gradient is all zero (padding, and what stands behind the labels) are left out.

    Args:
        upper: the rows, from a block on that is no higher than the lowest projection.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            # Weights are frozen: the graph begins at the lowest of these outputs.
            seen[path] = (args[0], output if output.requires_grad else output.requires_grad_())

        return hook

    undos = [model.hook(path, keep(path)) for path in paths]
    try:
        with torch.enable_grad():
            loss = F.cross_entropy(label_logits(model, upper.run(model, {}), labels), labels.token, reduction="sum")
        found = torch.autograd.grad(loss, [seen[path][1] for path in paths])
    finally:
        for undo in undos:
            undo()
    wanted = torch.ones(upper.hidden.shape[:2], dtype=torch.bool, device=upper.hidden.device)
    if tokens == "answers":
        wanted.zero_()[labels.row, labels.at] = True
    return {path: _factors(seen[path][0].detach(), gradient, wanted) for path, gradient in zip(paths, found, strict=True)}


def _factors(inputs: Tensor, gradients: Tensor, wanted: Tensor) -> TokenFactors:
    used = wanted & (inputs != 0).any(-1) & (gradients != 0).any(-1)
    return TokenFactors(inputs[used].float(), gradients[used].float(), used.nonzero()[:, 0])


@contextmanager
def added(model: EditableModel, terms: Mapping[str, Sequence[LowRank]], sizes: Sequence[int]) -> Iterator[None]:
    """Add `left @ right^T` to projections, another one for each group of consecutive rows; gradients flow to the terms.

    Args:
        terms: module path -> one term for each group.
        sizes: rows of each group, in the order of the rows; together all rows of a pass.
    """

    def hook_for(groups: Sequence[LowRank]) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            parts = args[0].float().split(list(sizes))
            extra = [(x @ term.right) @ term.left.t() for x, term in zip(parts, groups, strict=True)]
            return output + torch.cat(extra).to(output.dtype)

        return hook

    undos = [model.hook(path, hook_for(groups)) for path, groups in terms.items()]
    try:
        yield
    finally:
        for undo in undos:
            undo()
