"""NAS: another method's solved values at the norm that the base model's own values have for subjects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

from pydantic import PositiveInt

from editors.base import NO_BENCH, Corpus, Editor, EditorCard, Prepared, Workbench
from editors.direct.hosting import Host, HostedConfig
from editors.mechanics.contexts import BARE
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from editors.targets.keys_values import lookup_states
from editors.views import at_base
from warehouse.records import EditBatch, EditRequest

#: What a locate-and-edit preparation calls the mean norms of values -> where those are.
NORMS = {"block_norms": "block", "mlp_norms": "mlp_out"}


class NasConfig(HostedConfig):
    """Attributes:
    subjects: training edits whose subjects the reference norm is taken over; without any, the host's generic text.
    """

    subjects: PositiveInt = 256


@final
class Nas(Editor[NasConfig]):
    """Norm-anchor scaling on any locate-and-edit host: v <- v (mean norm of base values) / ||v|| (Liu et al. 2026)."""

    card: ClassVar[EditorCard] = EditorCard(
        name="nas",
        title="NAS",
        family="direct",
        patch_kind="weight",
        paper="Liu et al. 2026, norm-anchor scaling, arXiv:2602.02543",
        needs_preparation=True,
        only_xy=False,
        differs="Any locate-and-edit host, through its `anchor_norm`; the reference is the mean over the last subject tokens "
        "of training edits, at the layer where the host solves its values.",
    )

    def __init__(self, config: NasConfig) -> None:
        super().__init__(config)
        self._host = Host(config, anchor_norm=True)
        # The host decides on batches and modes, and only an instance knows it.
        vars(self)["card"] = self._host.card(type(self).card)

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """The host's preparation, with norms taken at subjects."""
        prepared = self._host.on(model).prepare(model, corpus, bench)
        requests = [e.request for e in corpus.edits[: self.config.subjects]]
        if not requests:
            return prepared
        meta = dict(prepared.meta)
        with at_base(model):
            for name in NORMS.keys() & meta.keys():
                meta[name] = {layer: subject_norm(model, requests, NORMS[name], int(layer)) for layer in meta[name]}
        return Prepared(prepared.tensors, meta)

    def preparation_key(self) -> str:
        return self._host.preparation_key("nas", self.config.subjects)

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        # The patch stays the host's own, by name too: what the host looks for in a sequence is there.
        return self._host.edit(model, batch, prepared)

    def edit_each(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[WeightPatch]:
        return self._host.edit_each(model, requests, prepared)


def subject_norm(model: EditableModel, requests: Sequence[EditRequest], site: str, layer: int) -> float:
    """Mean norm of a site's output (`block`, or `mlp_out`) at the last subject tokens of bare prompts."""
    path = {"block": model.anatomy.block, "mlp_out": model.anatomy.mlp_out}[site]
    return float(lookup_states(model, requests, BARE, path, layer).outputs.norm(dim=-1).mean())
