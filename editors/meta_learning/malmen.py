"""MALMEN: MEND's nets propose value changes token by token, and least squares makes one update of all of them.

Tan, Zhang and Fu 2024, arXiv:2311.04661, section 4. Summing thousands of MEND's updates cancels them out; here each
answer token j of each edit asks for a change d_j of a projection's output at its key u_j, and the update S of the weight is
the ridge solution of S U = D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from editors.base import NO_BENCH, Corpus, EditorCard, Prepared, Workbench
from editors.groups import GroupEditor
from editors.mechanics.gradients import Projections, TokenFactors, Tokens
from editors.mechanics.paraphrases import names_of
from editors.model import EditableModel
from editors.nets.earlier_edits import EarlierEdits, released_keys
from editors.nets.episodes import Episode
from editors.nets.hypernetwork import EditorNets
from editors.nets.lessons import Factors, Places, ask, batch_factors, group_factors, joined, passes
from editors.nets.net_training import NetConfig, scaled_step, train_nets
from editors.patches.weight import LowRank, WeightPatch
from editors.solvers.held_keys import HeldKeys
from editors.solvers.ridge import ridge_directions, ridge_gradient
from editors.solvers.solve import check_norm
from warehouse.digests import digest_of
from warehouse.records import EditRequest


class MalmenConfig(NetConfig):
    """Numbers of MALMEN.

    Attributes:
        projections: the one back to the residual stream, as published, or all matrices of the feed-forward.
        tokens: which tokens ask for a change: those of the answers, as published, or all that have a gradient.
        keep_gram: in a sequence, hold the values at the keys of earlier edits (recursive least squares).
        ridge: first lambda, as a share of the mean energy of a key.
        locality_weight: of the divergence on kept prompts, against the loss on the new answers.
        episodes_per_pass, tokens_per_pass: what the model, and what a net, takes at once in training.
    """

    projections: Projections = "mlp_out"
    tokens: Tokens = "answers"
    keep_gram: bool = True
    ridge: PositiveFloat = 0.1
    locality_weight: NonNegativeFloat = 1.0
    episodes_per_pass: PositiveInt = 8
    tokens_per_pass: PositiveInt = 1024


@final
class Malmen(GroupEditor[MalmenConfig]):
    """Value changes from nets trained on training edits, aggregated by least squares.

    Every factor of a patch holds the batch's keys against zeros behind its own columns: the stack of patches is the only
    state, and a rollback takes the keys along.
    """

    card = EditorCard(
        name="malmen",
        title="MALMEN",
        family="meta_learning",
        patch_kind="weight",
        paper="arXiv:2311.04661",
        code="ChenmienTan/malmen",
        modes=("single", "batch", "sequential"),
        experimental=("sequential-batch",),
        needs_preparation=True,
        trains=True,
        why_not="its net has learnt the gradients of the unedited model; sequences of batches leave it behind",
        differs=(
            "Solved by Cholesky in float64, in the dual form where there are fewer keys than their width. eta and lambda are "
            "relative to the sizes of the weight and of its keys; lambda's derivative comes from that of the value changes. "
            "Moments are each projection's own, taken once before training. Training mixes batch sizes, so that one net "
            "serves one edit and a hundred. Kept prompts are facts; the divergence is taken where their answers are due. The "
            "stop behind an answer is part of it. A preset may let all tokens with a gradient ask for a change, not the "
            "answers' alone. Keys of a subject that is edited again are released."
        ),
    )

    def __init__(self, config: MalmenConfig) -> None:
        super().__init__(config)
        self._earlier = EarlierEdits()

    def preparation_key(self) -> str:
        """All but what an edit alone reads."""
        return digest_of(self.config.model_dump(mode="json", exclude={"max_relative_norm", "keep_gram"}))

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Train the nets on the corpus's training edits, on the base model.

        Raises:
            ValueError: fewer than two subjects among the training edits.
        """
        config, places = self.config, self._places(model)
        return train_nets(
            model,
            corpus,
            places,
            config,
            bench,
            scalars={"step": config.edit_rate, "ridge": config.ridge},
            gather=lambda nets, batches: self._gather(model, nets, places, batches),
            edit=terms,
        )

    def _places(self, model: EditableModel) -> Places:
        return Places.of(model, self.config.layers, self.config.projections, self.config.tokens)

    def _gather(
        self, model: EditableModel, nets: EditorNets, places: Places, batches: Sequence[Sequence[Episode]]
    ) -> dict[str, float]:
        """Decoupled training (section 4.3): no graph holds the model and a net at once, nor more than one pass of either."""
        factors = batch_factors(model, batches, places)
        with torch.no_grad():
            solved = [terms(nets, found) for found in factors]
        leaves = [{p: LowRank(t.left.clone().requires_grad_(True), t.right) for p, t in batch.items()} for batch in solved]
        measured = self._ask(model, places, batches, leaves)
        towards = [{path: _gradient(term.left) for path, term in batch.items()} for batch in leaves]
        for path in places.shapes:
            ridge, name = ridge_of(nets, path), f"{path}|ridge"
            slope = sum(
                ridge_gradient(f[path].inputs.t(), ridge, t[path].left, g[path])
                for f, t, g in zip(factors, solved, towards, strict=True)
            )
            # The logarithm is what is learnt.
            nets.learnt[name].grad = torch.full_like(nets.learnt[name], ridge * slope)
        self._through_nets(nets, joined(factors), {p: torch.cat([g[p] for g in towards], dim=1) for p in places.shapes})
        return measured

    def _ask(
        self,
        model: EditableModel,
        places: Places,
        batches: Sequence[Sequence[Episode]],
        leaves: Sequence[Mapping[str, LowRank]],
    ) -> dict[str, float]:
        """Loss after the edits, pass by pass; its gradient stays in the leaves (for a change D: G (U U^T + lambda)^-1 U)."""
        episodes = [episode for batch in batches for episode in batch]
        num_new, num_kept = sum(1 + len(e.rephrased) for e in episodes), sum(len(e.kept) for e in episodes)
        edited_sum = kept_sum = 0.0
        for parts in passes(batches, self.config.episodes_per_pass):
            asked = ask(model, [some for _, some in parts], places)
            edited, kept = asked.losses([leaves[number] for number, _ in parts])
            loss = edited.sum() / num_new + self.config.locality_weight * kept.sum() / max(1, num_kept)
            loss.backward()
            edited_sum += float(edited.detach().sum())
            kept_sum += float(kept.detach().sum())
        return {"edited": edited_sum / num_new, "kept": kept_sum / max(1, num_kept)}

    def _through_nets(self, nets: EditorNets, factors: Factors, towards: Mapping[str, Tensor]) -> None:
        """From dL/dD into the nets: <dL/dD, D> has the same gradient as the loss."""
        for path, found in factors.items():
            size = self.config.tokens_per_pass
            for at in range(0, len(found.row), size):
                some = TokenFactors(*(t[at : at + size] for t in (found.inputs, found.gradients, found.row)))
                (value_changes(nets, path, some) * towards[path][:, at : at + size]).sum().backward()

    def edit_groups(
        self, model: EditableModel, groups: Sequence[Sequence[EditRequest]], prepared: Prepared
    ) -> list[WeightPatch]:
        """See `GroupEditor.edit_groups`."""
        places = self._places(model)
        nets = EditorNets(prepared.tensors, prepared.tensors, places.shapes)
        found = group_factors(model, groups, places)
        return [self._patch(model, nets, group, factors) for group, factors in zip(groups, found, strict=True)]

    @torch.no_grad()
    def _patch(self, model: EditableModel, nets: EditorNets, batch: Sequence[EditRequest], factors: Factors) -> WeightPatch:
        names = names_of(batch)
        held, released = self._earlier_than(model, nets, batch, factors)
        updates: dict[str, LowRank] = {}
        for path, term in terms(nets, factors, held, released).items():
            check_norm(term, model.parameter(f"{path}.weight"), self.config.max_relative_norm, names)
            keys = factors[path].inputs.t()
            left = torch.cat([term.left, torch.zeros_like(term.left)], dim=1)
            updates[f"{path}.weight"] = LowRank(left, torch.cat([term.right, keys], dim=1).contiguous())
        owners = {path: [batch[i].subject for i in found.row.tolist()] for path, found in factors.items()}
        return WeightPatch(updates, {"editor": "malmen", "requests": names, "owners": owners})

    def _earlier_than(
        self, model: EditableModel, nets: EditorNets, batch: Sequence[EditRequest], factors: Factors
    ) -> tuple[Mapping[str, HeldKeys], Mapping[str, Tensor]]:
        """Keys of the edits on the model, and those among them of subjects that are edited again."""
        if not self.config.keep_gram:
            return {}, {}
        held = self._earlier.held(model, {path: ridge_of(nets, path) for path in factors})
        return held, released_keys(model, list(factors), {r.subject for r in batch})


def value_changes(nets: EditorNets, path: str, factors: TokenFactors) -> Tensor:
    """D (d_out, tokens): d_j = -eta (u_j . u~_j) g~_j, what MEND's update of token j alone would do at its own key."""
    inputs, gradients = nets(path, factors)
    step = scaled_step(nets, path, inputs.device)
    return -(step * (factors.inputs * inputs).sum(-1, keepdim=True) * gradients).t()


def ridge_of(nets: EditorNets, path: str) -> float:
    """lambda of a projection, in the units of its keys."""
    return float(nets.learnt[f"{path}|ridge"].detach().exp() * nets.fixed[f"{path}|energy"])


def terms(
    nets: EditorNets,
    factors: Factors,
    held: Mapping[str, HeldKeys] | None = None,
    released: Mapping[str, Tensor] | None = None,
) -> dict[str, LowRank]:
    """S of every projection for one batch of edits, as factors (D, (U U^T + P P^T + lambda)^-1 U).

    Args:
        held: path -> P, keys of earlier edits.
        released: path -> those among them (d_in, others) that count no more.
    """
    out: dict[str, LowRank] = {}
    for path, found in factors.items():
        keys = found.inputs.t()
        earlier = (held or {}).get(path)
        if earlier is None:
            right = ridge_directions(keys, ridge_of(nets, path))
        else:
            right = earlier.directions(keys, (released or {}).get(path))
        out[path] = LowRank(value_changes(nets, path, found), right.to(keys.device, torch.float32))
    return out


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None, "every batch is asked something"
    return leaf.grad
