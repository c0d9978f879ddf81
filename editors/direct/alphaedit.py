"""AlphaEdit: MEMIT's spread with updates that cannot touch what generic text reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from editors.base import NO_BENCH, Corpus, EditorCard, Prepared, Workbench
from editors.groups import GroupEditor
from editors.mechanics.behind import spread_site
from editors.mechanics.settings import AscendingLayers, LocateEditConfig
from editors.model import EditableModel
from editors.patches.weight import LowRank, WeightPatch
from editors.solvers.null_space import NullSpaces, null_space_update, prepare_null_spaces, read_null_spaces
from editors.solvers.spread import spread_over_layers, write_groups
from editors.targets.values import anchored, optimise_values
from warehouse.records import EditRequest


class AlphaEditConfig(LocateEditConfig):
    """Attributes:
    layers: edited layers, ascending; the values are optimised at the last one's output.
    null_share: the null space is the largest set of least directions that hold this share of the trace of C at most.
    null_threshold: the published rule instead: directions whose eigenvalue is below this. None: by share.
    l2: ridge on the update inside the null space.
    l2_scale: `published` takes it as it is; `relative` in units of a generic token's mean key energy in the layer.
    protect_earlier: keep the values of earlier AlphaEdit edits that are on the model, except where this batch has the same
        subject: there the newer edit replaces the older.
    """

    layers: AscendingLayers
    null_share: Annotated[float, Field(gt=0, lt=1)] = 0.02
    null_threshold: PositiveFloat | None = None
    l2: PositiveFloat = 10.0
    l2_scale: Literal["relative", "published"] = "published"
    protect_earlier: bool = True


@final
class AlphaEdit(GroupEditor[AlphaEditConfig]):
    """Null-space constrained editing.

    Targets and spread as MEMIT; per layer Delta = R K^T P ((E E^T + K K^T) P + l2 I)^-1, P the projector on the null space of
    generic keys and E the keys of all earlier batches (Fang et al. 2025).

    The earlier keys travel in the patches: the right factor of each update ends with its batch's keys, against zeros in the
    left one. They add nothing to the weight, are saved and signed with the patch, and leave the model with it.
    """

    joint = True
    card: ClassVar[EditorCard] = EditorCard(
        name="alphaedit",
        title="AlphaEdit",
        family="direct",
        patch_kind="weight",
        paper="Fang et al. 2025, AlphaEdit: Null-Space Constrained Knowledge Editing, arXiv:2410.02355",
        code="jianghoucheng/AlphaEdit",
        needs_preparation=True,
        only_xy=False,
        differs="The null space may be chosen by its share of the trace, as an absolute threshold depends on the scale of the "
        "keys; solved by Cholesky in the r dimensions of the null space; earlier keys are part of the patches, so that a "
        "rollback takes them along; the keys of a subject that is edited again are released.",
    )

    def __init__(self, config: AlphaEditConfig) -> None:
        super().__init__(config)
        self._last: tuple[Prepared, torch.device, NullSpaces] | None = None

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        return prepare_null_spaces(model, corpus, self.config.layers, self.config)

    def preparation_key(self) -> str:
        return self.config.preparation_digest(self.config.layers)

    @torch.no_grad()
    def edit_groups(
        self, model: EditableModel, groups: Sequence[Sequence[EditRequest]], prepared: Prepared
    ) -> list[WeightPatch]:
        """The values of all groups, which cost most, are optimised in one batch; see `GroupEditor.edit_groups`."""
        known, top = self._read(prepared, model.device), self.config.layers[-1]
        requests = [request for group in groups for request in group]
        solution = optimise_values(model, requests, known.contexts, top, spread_site(model), self.config)
        targets = anchored(solution.targets, known.site_norms(spread_site(model))[top], self.config)

        def write(group: Sequence[EditRequest], wanted: Tensor, note: dict[str, Any]) -> WeightPatch:
            return self._write(model, group, wanted, note, known)

        return write_groups("alphaedit", groups, targets, solution, write)

    def _read(self, prepared: Prepared, device: torch.device) -> NullSpaces:
        # Once for as long as the same preparation is handed in: the fp64 bases are large.
        if self._last is None or self._last[0] is not prepared or self._last[1] != device:
            config = self.config
            known = read_null_spaces(prepared, config.layers, device, config.null_share, config.null_threshold)
            self._last = (prepared, device, known)
        return self._last[2]

    def _write(
        self, model: EditableModel, requests: Sequence[EditRequest], targets: Tensor, note: Mapping[str, Any], known: NullSpaces
    ) -> WeightPatch:
        config, path = self.config, model.anatomy.mlp_out
        subjects = frozenset(r.subject for r in requests)
        owners: list[str] = []
        written: dict[str, LowRank] = {}

        def solve(layer: int, residuals: Tensor, keys: Tensor, owner: Tensor) -> LowRank:
            name = path.format(layer=layer) + ".weight"
            earlier = earlier_keys(model, name, subjects) if config.protect_earlier else None
            ridge = config.l2 * (known.energies[layer] if config.l2_scale == "relative" else 1.0)
            update = null_space_update(residuals, keys, known.bases[layer], ridge, earlier)
            written[name] = with_keys(update, keys)
            owners[:] = [requests[i].subject for i in owner.tolist()]
            return update

        spread_over_layers(model, requests, known.contexts, config, targets, config.layers, solve)
        return WeightPatch(written, {**note, "subjects": owners})


def with_keys(update: LowRank, keys: Tensor) -> LowRank:
    """The same update whose last right columns are the batch's keys (d_in, edits), against zeros."""
    nothing = update.left.new_zeros(update.left.shape[0], keys.shape[1])
    return LowRank(torch.cat([update.left, nothing], dim=1), torch.cat([update.right, keys.float()], dim=1))


def earlier_keys(model: EditableModel, name: str, without: frozenset[str]) -> Tensor | None:
    """Keys (d_in, edits) that the AlphaEdit patches on the model wrote at the weight `name`, without those subjects'."""
    found = []
    for patch in model.patches:
        note = patch.meta.get("note", {})
        if note.get("editor") != "alphaedit" or not isinstance(patch, WeightPatch) or name not in patch.updates:
            continue
        update, subjects = patch.updates[name], note["subjects"]
        assert isinstance(update, LowRank), "AlphaEdit writes factors, which carry its keys"
        kept = [i - len(subjects) for i, subject in enumerate(subjects) if subject not in without]
        found.append(update.right[:, kept].to(model.device))
    return torch.cat(found, dim=1) if found else None
