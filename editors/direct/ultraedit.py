"""UltraEdit: one backward pass, running normalisation over the whole life of the model, and one ridge solution."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, final

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from editors.base import NO_BENCH, Corpus, EditorCard, EditorConfig, Prepared, Workbench
from editors.groups import GroupEditor
from editors.mechanics.gradients import Projections, TokenFactors, Tokens
from editors.mechanics.paraphrases import names_of
from editors.mechanics.second_moment import WideFactors, measure_moments, ridged_factor
from editors.model import EditableModel
from editors.nets.lessons import Factors, Places, group_factors, joined, request_factors, slices
from editors.patches.weight import LowRank, WeightPatch
from editors.precision import wide, wide_device
from editors.solvers.lifelong import LifelongMoments
from editors.solvers.ridge import ridge_directions
from editors.solvers.solve import check_norm, ridge_update
from editors.views import at_base
from warehouse.digests import digest_of
from warehouse.records import EditRequest

log = logging.getLogger(__name__)

#: Training edits in one pass of the warm-up.
EDITS_PER_PASS = 32
#: Added to the diagonal of a second moment, as a share of its mean entry.
MOMENT_RIDGE = 1e-4
#: Columns behind an update's own that carry the moments: mean and variance of gradients, then those of inputs.
CARRIED = 4


class UltraEditConfig(EditorConfig):
    """Attributes:
    layers: blocks whose feed-forward is edited.
    projections: the one back to the residual stream, or all matrices of the feed-forward (then `preserved` must be 0).
    tokens: which tokens ask for a change: those of the answers, as published, or all that have a gradient.
    edit_rate: eta. `relative`: a token whose normalised factors have unit variance asks for a change of this share of the
        mean norm of the projection's output. `published`: the plain factor before ||h~||^2 g~.
    ridge: `relative`: a share of a training token's mean key energy. `published`: as it is (1).
    scale: how the two are read.
    preserved: weight of generic text's second moment in the ridge solution, as lambda is MEMIT's; 0: none, as published.
    second_moment_tokens: how many corpus tokens it is taken over.
    warm_up_edits: training edits that the first statistics are taken over.
    max_relative_norm: an update larger than this share of the weight's Frobenius norm is refused.
    """

    layers: tuple[int, ...] = Field(min_length=1)
    projections: Projections = "mlp_out"
    tokens: Tokens = "answers"
    edit_rate: PositiveFloat = 1e-6
    ridge: PositiveFloat = 1.0
    scale: Literal["relative", "published"] = "relative"
    preserved: NonNegativeFloat = 0.0
    second_moment_tokens: PositiveInt = 20_000
    warm_up_edits: PositiveInt = 128
    max_relative_norm: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _preserves_what_it_measures(self) -> Self:
        if self.preserved and self.projections != "mlp_out":
            raise ValueError("preserved needs projections: mlp_out; second moments are those of its keys")
        return self


@final
class UltraEdit(GroupEditor[UltraEditConfig]):
    """Training-free, subject-free closed form (Gu et al. 2025, section 3).

    For each token: key h (input of the projection) and gradient g of the loss at its output, normalised over everything
    seen so far; wanted change d = -eta ||h~||^2 g~; the update is the ridge solution S h = d on the raw keys.

    The statistics belong to the stack of patches: each patch carries those after its batch behind its own columns, against
    zeros in the other factor, and the next edit starts from the last one's. A rollback takes them back with the weights.
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="ultraedit",
        title="UltraEdit",
        family="direct",
        patch_kind="weight",
        paper="Gu et al. 2025, UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing, arXiv:2505.14679",
        code="XiaojieGu/UltraEdit",
        needs_preparation=True,
        differs="Statistics start from training edits instead of from nothing, are each projection's own, and travel in the "
        "patches; population variance, as the unbiased one is NaN for one token and drifts as it is merged. eta and the "
        "ridge may be relative to the sizes of outputs and keys; generic text may stand in the solution. "
        "Solved by Cholesky in float64, in the dual form where there "
        "are fewer tokens than the width of a key. The stop behind an answer is part of it.",
    )

    def __init__(self, config: UltraEditConfig) -> None:
        super().__init__(config)
        self._last: tuple[Prepared, WideFactors[str]] | None = None

    def preparation_key(self) -> str:
        config = self.config
        moment = (config.seed, config.second_moment_tokens) if config.preserved else ()
        return digest_of("ultraedit", config.layers, config.projections, config.tokens, config.warm_up_edits, *moment)

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """First statistics from training edits on the base model; no weight is trained.

        Raises:
            ValueError: the corpus has no training edits.
        """
        edits = corpus.edits[: self.config.warm_up_edits]
        if not edits:
            raise ValueError("ultraedit takes its first statistics from training edits; the corpus has none")
        with at_base(model):
            places = self._places(model)
            moments = {path: _fresh(shape) for path, shape in places.shapes.items()}
            sizes = dict.fromkeys(places.shapes, 0.0)
            for number, some in enumerate(slices(edits, EDITS_PER_PASS)):
                found = joined(request_factors(model, [e.request for e in some], places))
                for path, own in found.items():
                    moments[path] = _with(moments[path], own)
                    sizes[path] += float((own.inputs @ _weight(model, path).t()).norm(dim=1).sum())
                bench.progress(min(len(edits), (number + 1) * EDITS_PER_PASS), len(edits), "training edits")
            factors = self._second_moments(model, corpus) if self.config.preserved else {}
        tensors = {f"{path}|factor": factor for path, factor in factors.items()}
        meta: dict[str, Any] = {"training_edits": len(edits), "tokens": {}, "output_norms": {}, "energies": {}}
        for path, (inputs, gradients) in moments.items():
            tensors |= {
                f"{path}|input": torch.stack([inputs.mean, inputs.variance]).float().cpu(),
                f"{path}|gradient": torch.stack([gradients.mean, gradients.variance]).float().cpu(),
            }
            meta["tokens"][path] = inputs.count
            meta["output_norms"][path] = sizes[path] / inputs.count
            meta["energies"][path] = float((inputs.mean.square() + inputs.variance).sum())
        return Prepared(tensors, meta)

    def _second_moments(self, model: EditableModel, corpus: Corpus) -> dict[str, Tensor]:
        """Cholesky factor of generic keys' second moment for each output projection; fp32."""
        config, path = self.config, model.anatomy.mlp_out
        found = measure_moments(model, corpus.texts, config.layers, config.second_moment_tokens, config.seed)
        return {path.format(layer=i): ridged_factor(m, MOMENT_RIDGE).float().cpu() for i, m in found.second.items()}

    def _places(self, model: EditableModel) -> Places:
        return Places.of(model, self.config.layers, self.config.projections, self.config.tokens)

    def edit_groups(
        self, model: EditableModel, groups: Sequence[Sequence[EditRequest]], prepared: Prepared
    ) -> list[WeightPatch]:
        """The backward passes are shared; see `GroupEditor.edit_groups`."""
        places = self._places(model)
        second = self._factors(prepared, model.device)
        before = {path: carried(model, path, prepared) for path in places.shapes}
        found = group_factors(model, groups, places)
        return [self._patch(model, g, factors, before, second, prepared) for g, factors in zip(groups, found, strict=True)]

    def _factors(self, prepared: Prepared, device: torch.device) -> Mapping[str, Tensor]:
        """Cholesky factors in fp64, one held at a time for as long as the same preparation is handed in."""
        if not self.config.preserved:
            return {}
        if self._last is None or self._last[0] is not prepared:
            named = {n.rsplit("|", 1)[0]: t for n, t in prepared.tensors.items() if n.endswith("|factor")}
            self._last = (prepared, WideFactors(named, device))
        return self._last[1]

    @torch.no_grad()
    def _patch(
        self,
        model: EditableModel,
        batch: Sequence[EditRequest],
        factors: Factors,
        before: Mapping[str, _Moments],
        second: Mapping[str, Tensor],
        prepared: Prepared,
    ) -> WeightPatch:
        names, counts = names_of(batch), {}
        updates: dict[str, LowRank] = {}
        for path, found in factors.items():
            # Updated with the batch before use: an input unlike all before cannot blow up.
            moments = _with(before[path], found)
            eta, ridge = self._scales(found, path, prepared)
            wanted = value_changes(found, moments, eta)
            keys = found.inputs.t()
            if path in second:
                right = ridge_update(wanted, keys, second[path], self.config.preserved).right
            else:
                right = ridge_directions(keys, ridge)
            update = compact(wanted, right)
            check_norm(update, model.parameter(f"{path}.weight"), self.config.max_relative_norm, names)
            updates[f"{path}.weight"] = carrying(update, moments)
            counts[f"{path}.weight"] = moments[0].count
        return WeightPatch(updates, {"editor": "ultraedit", "requests": names, "tokens": counts})

    def _scales(self, found: TokenFactors, path: str, prepared: Prepared) -> tuple[float, float]:
        """eta before ||h~||^2 g~, and the ridge on the raw keys."""
        config = self.config
        if config.scale == "published":
            return config.edit_rate, config.ridge
        d_in, d_out = found.inputs.shape[1], found.gradients.shape[1]
        unit = float(prepared.meta["output_norms"][path]) / (d_in * d_out**0.5)
        return config.edit_rate * unit, config.ridge * float(prepared.meta["energies"][path])


#: Moments of a projection's inputs and of the gradients at its output.
_Moments = tuple[LifelongMoments, LifelongMoments]


def value_changes(found: TokenFactors, moments: _Moments, eta: float) -> Tensor:
    """D (d_out, tokens), fp64: d_j = -eta ||h~_j||^2 g~_j."""
    inputs, gradients = moments[0].normalised(found.inputs), moments[1].normalised(found.gradients)
    return (-eta * inputs.square().sum(1, keepdim=True) * gradients).t()


def compact(left: Tensor, right: Tensor) -> LowRank:
    """left @ right^T with no more columns than the smaller side of the matrix; fp32."""
    d_out = left.shape[0]
    if left.shape[1] <= d_out:
        return LowRank(left.float(), right.float())
    return LowRank(torch.eye(d_out, device=left.device), (wide(right) @ wide(left).t()).float())


def carrying(update: LowRank, moments: _Moments) -> LowRank:
    """The same update with the moments behind its columns, each against zeros in the other factor."""
    inputs, gradients = moments
    of_gradients = torch.stack([gradients.mean, gradients.variance], dim=1).float()
    of_inputs = torch.stack([inputs.mean, inputs.variance], dim=1).float()
    left = torch.cat([update.left, of_gradients, torch.zeros_like(of_gradients)], dim=1)
    right = torch.cat([update.right, torch.zeros_like(of_inputs), of_inputs], dim=1)
    return LowRank(left.contiguous(), right.contiguous())


def carried(model: EditableModel, path: str, prepared: Prepared) -> _Moments:
    """The moments that the last UltraEdit patch on the model carries for a projection, or those of the preparation."""
    name, device = f"{path}.weight", model.device
    for patch in reversed(model.patches):
        note = patch.meta.get("note", {})
        if note.get("editor") != "ultraedit" or not isinstance(patch, WeightPatch) or name not in patch.updates:
            continue
        update = patch.updates[name]
        assert isinstance(update, LowRank), "UltraEdit writes factors, which carry its moments"
        gradients, inputs = update.left[:, -CARRIED : -CARRIED // 2].t(), update.right[:, -CARRIED // 2 :].t()
        return _moments(inputs, note["tokens"][name], device), _moments(gradients, note["tokens"][name], device)
    count = int(prepared.meta["tokens"][path])
    return (
        _moments(prepared.tensors[f"{path}|input"], count, device),
        _moments(prepared.tensors[f"{path}|gradient"], count, device),
    )


def _moments(rows: Tensor, count: int, device: torch.device) -> LifelongMoments:
    mean, variance = rows.to(wide_device(device), torch.float64)
    return LifelongMoments(count, mean, variance)


def _fresh(shape: tuple[int, int]) -> _Moments:
    return LifelongMoments.empty(shape[1]), LifelongMoments.empty(shape[0])


def _with(moments: _Moments, found: TokenFactors) -> _Moments:
    inputs, gradients = moments
    return inputs.merged(found.inputs.to(inputs.mean.device)), gradients.merged(found.gradients.to(inputs.mean.device))


def _weight(model: EditableModel, path: str) -> Tensor:
    """A projection's weight as (d_out, d_in), fp32."""
    stored = model.parameter(f"{path}.weight").float()
    return stored if isinstance(model.hf.get_submodule(path), torch.nn.Linear) else stored.t()
