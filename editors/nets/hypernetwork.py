"""The net that turns a gradient's factors into an edit's (MEND, MALMEN), and the running moments that normalise them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.mechanics.gradients import TokenFactors
from editors.solvers.lifelong import LifelongMoments

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: Residual layers of a net.
DEPTH = 2
#: Smallest standard deviation, as a share of the root mean square over all dimensions: a unit of the feed-forward that
#: was silent in training must not drown the others where it speaks once.
SMALLEST_STD = 1e-2


@dataclass(frozen=True)
class EditorNets:
    """One net for each shape of weight, shared by the projections of that shape, each of which has its own modulation.

    For the normalised z = [u; d] of a token, layer i adds `scale * (up (down z)) + shift` to z; all layers but the last
    clip what they add at zero. `up` starts at zero, so that a fresh net gives z back.

    Attributes:
        learnt: `SHAPE|i|down` (rank, width), `SHAPE|i|up` (width, rank), `PATH|i|scale` and `PATH|i|shift` (width,).
        fixed: `PATH|mean` and `PATH|std` (width,), of u and d one behind the other.
        shapes: path -> (d_out, d_in).
    """

    learnt: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, int]]

    def normalised(self, path: str, factors: TokenFactors) -> Float[Tensor, "tokens width"]:
        """[u; d] of each token over the moments of the training edits, fp32."""
        z = torch.cat([factors.inputs, factors.gradients], dim=1)
        return (z - self.fixed[f"{path}|mean"].to(z.device)) / self.fixed[f"{path}|std"].to(z.device)

    def __call__(self, path: str, factors: TokenFactors) -> tuple[Float[Tensor, "tokens d_in"], Float[Tensor, "tokens d_out"]]:
        """The tokens' pseudo-inputs u~ and pseudo-gradients d~."""
        z, shape = self.normalised(path, factors), shape_name(self.shapes[path])
        for i in range(DEPTH):
            down, up = self.learnt[f"{shape}|{i}|down"].to(z.device), self.learnt[f"{shape}|{i}|up"].to(z.device)
            scale, shift = self.learnt[f"{path}|{i}|scale"].to(z.device), self.learnt[f"{path}|{i}|shift"].to(z.device)
            more = (z @ down.t()) @ up.t() * scale + shift
            # clamp, not relu: its gradient at zero, where every fresh net stands, is one.
            z = z + (more.clamp(min=0) if i < DEPTH - 1 else more)
        width = self.shapes[path][1]
        return z[:, :width], z[:, width:]


def shape_name(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def fresh_nets(shapes: Mapping[str, tuple[int, int]], rank: int, seed: int) -> dict[str, Tensor]:
    """The learnt tensors of nets that change nothing yet; fp32 on the CPU.

    Args:
        rank: of each layer's matrix; no more than its width is of use.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for shape in sorted(set(shapes.values())):
        width = sum(shape)
        used = min(rank, width)
        for i in range(DEPTH):
            tensors[f"{shape_name(shape)}|{i}|down"] = torch.randn(used, width, generator=generator) / width**0.5
            tensors[f"{shape_name(shape)}|{i}|up"] = torch.zeros(width, used)
    for path, shape in shapes.items():
        for i in range(DEPTH):
            tensors[f"{path}|{i}|scale"] = torch.ones(sum(shape))
            tensors[f"{path}|{i}|shift"] = torch.zeros(sum(shape))
    return tensors


def scale_of(moments: LifelongMoments) -> Float[Tensor, " width"]:
    """What a net's input is divided by: the deviation, kept off zero; ones where nothing varied at all."""
    return moments.deviation(SMALLEST_STD) if moments.variance.any() else torch.ones_like(moments.variance)


class FactorMoments:
    """Running moments of the factors of several projections; their parts of `EditorNets.fixed`."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        self._inputs = {path: LifelongMoments.empty(shape[1]) for path, shape in shapes.items()}
        self._gradients = {path: LifelongMoments.empty(shape[0]) for path, shape in shapes.items()}

    def update(self, factors: Mapping[str, TokenFactors]) -> None:
        for path, found in factors.items():
            self._inputs[path] = self._inputs[path].merged(found.inputs.detach().cpu())
            self._gradients[path] = self._gradients[path].merged(found.gradients.detach().cpu())

    def energy(self, path: str) -> Tensor:
        """Mean squared norm of a projection's inputs: a scalar, fp32."""
        inputs = self._inputs[path]
        return (inputs.mean.square() + inputs.variance).sum().float()

    def fixed(self) -> dict[str, Tensor]:
        """`PATH|mean` and `PATH|std` of every projection, fp32."""
        tensors: dict[str, Tensor] = {}
        for path, inputs in self._inputs.items():
            gradients = self._gradients[path]
            tensors[f"{path}|mean"] = torch.cat([inputs.mean, gradients.mean]).float()
            tensors[f"{path}|std"] = torch.cat([scale_of(inputs), scale_of(gradients)]).float()
        return tensors
