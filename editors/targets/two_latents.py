"""Optimise two changes of one block together, of its attention's and of its feed-forward's output (PMET, Li et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from editors.asking.tokens import pad_right
from editors.mechanics.behind import refuse_norm_behind
from editors.mechanics.contexts import Contexts
from editors.mechanics.settings import LocateEditConfig
from editors.mechanics.suffix import Suffix
from editors.mechanics.trace import trace
from editors.model import EditableModel
from editors.targets.objective import EncodedEdit, Objective, build_objective
from editors.targets.values import ValueSolution, solve_in_chunks
from warehouse.records import EditRequest


@dataclass(frozen=True, kw_only=True)
class TwoLatentSuffix(Suffix):
    """A suffix whose change (rows, 2 d_model) holds that of the attention's output, then that of the feed-forward's.

    Attributes:
        middle: (rows, d_model) residual stream between attention and feed-forward at the lookup token.
        norm, mlp: the block's own, which read it.
        parallel: the feed-forward does not read what the attention writes.
    """

    middle: Tensor
    norm: nn.Module
    mlp: nn.Module
    parallel: bool

    def run(self, change: Tensor) -> Tensor:
        """Output of the last block; the feed-forward answers to what the attention's change makes of its input."""
        attention, feed_forward = change.chunk(2, dim=1)
        if self.parallel:
            return super().run(attention + feed_forward)
        before, after = self._answer(self.middle), self._answer(self.middle + attention.to(self.middle.dtype))
        return super().run(attention + after - before + feed_forward)

    def _answer(self, middle: Tensor) -> Tensor:
        """The feed-forward's output at the lookup token; fp32, so that a small difference of two is not rounded away."""
        return self.mlp(self.norm(middle[:, None]))[:, 0].float()

    def select(self, rows: Tensor) -> TwoLatentSuffix:
        kept = super().select(rows)
        return replace(self, hidden=kept.hidden, calls=kept.calls, prefix=kept.prefix, middle=self.middle[rows])


def two_latent_objective(
    model: EditableModel, encoded: Sequence[EncodedEdit], layer: int, config: LocateEditConfig
) -> tuple[Objective, Tensor]:
    """The shared objective over both changes, and the base values (edits, 2 d_model) of attention and feed-forward."""
    anatomy = model.anatomy
    objective, mlp_values = build_objective(model, encoded, layer, anatomy.mlp_out, config)
    rows = [row for e in encoded for row in e.rows]
    ids, mask = pad_right([r.ids[: r.lookup + 1] for r in rows], model.pad_id)
    assert anatomy.mlp_norm is not None, "only blocks with a norm behind the feed-forward have none before it"
    attention, norm = anatomy.attention_out.format(layer=layer), anatomy.mlp_norm.format(layer=layer)
    # A parallel block's norm may run before its attention or behind it.
    last = anatomy.block.format(layer=layer) if anatomy.parallel else norm
    seen = trace(model, ids, mask, inputs=(norm,), outputs=(attention,), stop_after=last)
    every = torch.arange(len(rows), device=mlp_values.device)
    lookup = torch.tensor([r.lookup for r in rows], device=mlp_values.device)
    # The first row of each edit is its bare prompt.
    firsts = [0]
    for e in encoded[:-1]:
        firsts.append(firsts[-1] + len(e.rows))
    attention_values = seen.outputs[attention][every, lookup][firsts].float()
    above = objective.suffix
    assert isinstance(above, Suffix)
    suffix = TwoLatentSuffix(
        hidden=above.hidden,
        blocks=above.blocks,
        calls=above.calls,
        prefix=above.prefix,
        cache=above.cache,
        middle=seen.inputs[norm][every, lookup],
        norm=model.hf.get_submodule(norm),
        mlp=model.hf.get_submodule(anatomy.mlp.format(layer=layer)),
        parallel=anatomy.parallel,
    )
    base_values = torch.cat([attention_values, mlp_values], dim=1)
    return replace(objective, suffix=suffix, base_norms=base_values.norm(dim=1)), base_values


def optimise_two_latents(
    model: EditableModel, requests: Sequence[EditRequest], contexts: Contexts, layer: int, config: LocateEditConfig
) -> ValueSolution:
    """As `values.optimise_values`, with changes and base values (edits, 2 d_model): attention's output, feed-forward's.

    The decay and the clamp are taken over both changes together.

    Raises:
        InvalidRequest: an empty target, or a subject that is not in its prompt.
        EditRefused: the objective became infinite or NaN.
        UnsupportedModel: a norm stands behind the feed-forward.
    """
    refuse_norm_behind(model, "pmet")
    model.anatomy.module(model.hf, model.anatomy.mlp_out, layer)

    def build(encoded: Sequence[EncodedEdit]) -> tuple[Objective, Tensor]:
        return two_latent_objective(model, encoded, layer, config)

    return solve_in_chunks(model, requests, contexts, layer, config, build)
