"""RECT: of another method's update only the entries that change their weights most, relative to their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, final

from pydantic import Field
from torch import Tensor

from editors.base import NO_BENCH, Corpus, Editor, EditorCard, Prepared, Workbench
from editors.direct.hosting import Host, HostedConfig
from editors.model import EditableModel
from editors.patches.weight import Dense, Sparse, Update, WeightPatch
from editors.precision import wide
from warehouse.records import EditBatch, EditRequest

#: Bytes of an entry of a sparse update (its place and its value) over those of a dense one.
SPARSE_COST = 3


class RectConfig(HostedConfig):
    """Attributes:
    kept: share of each matrix's entries that keep their update.
    """

    kept: Annotated[float, Field(gt=0, le=1)] = 0.4


@final
class Rect(Editor[RectConfig]):
    """Regularised editing: the top share of |Delta_ij| / |W_ij| stays, the rest is zero (Gu et al. 2024, section 5).

    The host's equations no longer hold exactly: success is to be measured again.
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="rect",
        title="RECT",
        family="direct",
        patch_kind="weight",
        paper="Gu et al. 2024, Model Editing Harms General Abilities of Large Language Models, arXiv:2401.04700",
        code="JasonForJoy/Model-Editing-Hurt",
        needs_preparation=True,
        only_xy=False,
        differs="Any locate-and-edit host. Relative to the weights as they stand, at each matrix by itself. A host that "
        "looks for its own earlier patches (AlphaEdit, MEMIT with accumulate_keys) does not find them under this name.",
    )

    def __init__(self, config: RectConfig) -> None:
        super().__init__(config)
        self._host = Host(config)
        # The host decides on batches and modes, and only an instance knows it.
        vars(self)["card"] = self._host.card(type(self).card)

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        return self._host.on(model).prepare(model, corpus, bench)

    def preparation_key(self) -> str:
        return self._host.preparation_key()

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        return self._kept(model, self._host.edit(model, batch, prepared))

    def edit_each(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[WeightPatch]:
        return [self._kept(model, patch) for patch in self._host.edit_each(model, requests, prepared)]

    def _kept(self, model: EditableModel, patch: WeightPatch) -> WeightPatch:
        updates: dict[str, Update] = {}
        for name in patch.updates:
            delta = patch.dense(name)
            updates[name] = rectified(delta, model.weight(name.removesuffix(".weight"), 0).to(delta.device), self.config.kept)
        note = dict(patch.meta["note"]) | {"editor": "rect", "host": self.config.host}
        return WeightPatch(updates, note)


def rectified(delta: Tensor, weight: Tensor, kept: float) -> Sparse | Dense:
    """The share `kept` of the entries of `delta` with the largest relative change; sparse where that is smaller."""
    relative = (wide(delta).abs() / wide(weight).abs().clamp_min(1e-12)).reshape(-1)
    count = max(1, round(kept * relative.numel()))
    # Sorted places: which of them came first in the search must not change the digest.
    index = relative.topk(count).indices.sort().values
    value = delta.reshape(-1)[index]
    rows, columns = delta.shape
    sparse = Sparse(index.cpu(), value.float().cpu().contiguous(), (rows, columns))
    return sparse if SPARSE_COST * count < relative.numel() else Dense(sparse.dense())
