"""What a change of the feed-forward's output becomes at the block's, where a norm stands between the two.

Where a norm stands between feed-forward and residual stream (Gemma, OLMo 2), the block's output changes by
`norm(m + change) - norm(m)`, with `m` the feed-forward's output; elsewhere by the change itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from editors.errors import UnsupportedModel
from editors.model import EditableModel

#: Where a value is counted: at the feed-forward's output, or at the block's.
Site = Literal["mlp", "block"]


@dataclass(frozen=True)
class Behind:
    """The norm behind a feed-forward, and what it read; `outputs`: (..., d_model) of some tokens."""

    norm: nn.Module
    outputs: Tensor

    def __call__(self, change: Tensor) -> Tensor:
        """Change of the block's output for a change of the feed-forward's, both (..., d_model)."""
        return self.norm(self.outputs + change.to(self.outputs.dtype)) - self.norm(self.outputs)

    def select(self, rows: Tensor) -> Behind:
        return Behind(self.norm, self.outputs[rows])


def behind(model: EditableModel, layer: int, outputs: Tensor) -> Behind | None:
    """What stands behind the feed-forward of `layer` whose output was `outputs`; None where nothing does."""
    path = model.anatomy.mlp_post_norm
    return None if path is None else Behind(model.hf.get_submodule(path.format(layer=layer)), outputs)


def spread_site(model: EditableModel) -> Site:
    """Where mass editors count their values: at the block's output, which every layer's feed-forward adds to.

    Behind a norm a layer cannot write its share of a residual (its contribution has the norm's length), so there values are
    those of the last layer's feed-forward, which alone is written.
    """
    return "block" if model.anatomy.mlp_post_norm is None else "mlp"


def spread_layers(model: EditableModel, layers: Sequence[int]) -> Sequence[int]:
    """The layers that a mass editor writes; see `spread_site`."""
    return layers if model.anatomy.mlp_post_norm is None else layers[-1:]


def site_path(model: EditableModel, site: Site) -> str:
    """The module whose output a value at `site` changes."""
    return model.anatomy.mlp_out if site == "mlp" else model.anatomy.block


def refuse_norm_behind(model: EditableModel, editor: str) -> None:
    """Refuse what adds to the block's output what it found at the feed-forward's.

    Raises:
        UnsupportedModel: a norm stands between the two.
    """
    if model.anatomy.mlp_post_norm is not None:
        raise UnsupportedModel(
            f"{editor} writes at the feed-forward's output as if it were the block's, and {model.name} "
            f"({model.hf.config.model_type}) norms it in between; choose another editor"
        )
