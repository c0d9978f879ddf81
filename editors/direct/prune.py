"""PRUNE: what a sequence of updates has added up to may not outgrow the weight that it changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor

from editors.base import NO_BENCH, Corpus, Editor, EditorCard, Prepared, Workbench
from editors.direct.hosting import Host, HostedConfig
from editors.model import EditableModel
from editors.patches.weight import Dense, LowRank, Update, WeightPatch
from editors.precision import wide
from warehouse.records import EditBatch, EditRequest


class PruneConfig(HostedConfig):
    """Attributes:
    log_base: b; the larger, the harder large singular values are shrunk.
    """

    log_base: Annotated[float, Field(gt=1)] = 1.2


@final
class Prune(Editor[PruneConfig]):
    """Condition-number restraint on any locate-and-edit host (Ma et al. 2024, section 5).

    Of the accumulated Delta since the base, singular values s above the base weight's largest, t, become
    log_b(s) - log_b(t) + t. Each patch is the host's update with the difference that this makes, so that base and patches
    add up to the restrained sum, and a rollback gives back exactly the sum before.
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="prune",
        title="PRUNE",
        family="direct",
        patch_kind="weight",
        paper="Ma et al. 2024, Perturbation-Restrained Sequential Model Editing, arXiv:2405.16821",
        code="mjy1111/PRUNE",
        needs_preparation=True,
        only_xy=False,
        differs="Restrained after every batch instead of once behind the last, so that every state of the sequence is one "
        "that could be served; a value is never raised, which the formula does where t ln b < 1. A host that looks for its "
        "own earlier patches (AlphaEdit, MEMIT with accumulate_keys) does not find them under this name.",
    )

    def __init__(self, config: PruneConfig) -> None:
        super().__init__(config)
        self._host = Host(config)
        # The host decides on batches and modes, and only an instance knows it.
        vars(self)["card"] = self._host.card(type(self).card)
        self._largest: dict[tuple[str, str], float] = {}

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        return self._host.on(model).prepare(model, corpus, bench)

    def preparation_key(self) -> str:
        return self._host.preparation_key()

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        return self._restrained(model, self._host.edit(model, batch, prepared))

    def edit_each(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[WeightPatch]:
        return [self._restrained(model, patch) for patch in self._host.edit_each(model, requests, prepared)]

    def _restrained(self, model: EditableModel, patch: WeightPatch) -> WeightPatch:
        updates: dict[str, Update] = {}
        shrunk: dict[str, int] = {}
        for name, update in patch.updates.items():
            base, now = _oriented(model, name, model.base_parameter(name)), _oriented(model, name, model.parameter(name))
            total = wide(now) - wide(base) + wide(update.dense().to(now.device))
            extra = restraint(total, self._limit(model, name, base), self.config.log_base)
            updates[name] = update if extra is None else _joined(update, extra)
            shrunk[name] = 0 if extra is None else extra.left.shape[1]
        note = dict(patch.meta["note"]) | {"editor": "prune", "host": self.config.host, "shrunk": shrunk}
        return WeightPatch(updates, note)

    def _limit(self, model: EditableModel, name: str, base: Tensor) -> float:
        """Largest singular value of a base weight, taken once."""
        key = (model.base_digest, name)
        if key not in self._largest:
            self._largest[key] = float(torch.linalg.matrix_norm(wide(base), 2))
        return self._largest[key]


def restraint(total: Tensor, limit: float, base: float) -> LowRank | None:
    """What brings the singular values of `total` above `limit` down to log_b(s) - log_b(limit) + limit; None: none is."""
    # The Frobenius norm bounds them all, and costs no decomposition.
    if float(total.norm()) <= limit:
        return None
    u, s, vt = torch.linalg.svd(total, full_matrices=False)
    target = torch.minimum(s, (s / limit).clamp_min(1.0).log() / torch.tensor(base, dtype=s.dtype).log() + limit)
    large = (s > limit) & (target < s)
    if not large.any():
        return None
    return LowRank((u[:, large] * (target - s)[large]).float(), vt[large].t().float().contiguous())


def _joined(update: Update, extra: LowRank) -> Update:
    if isinstance(update, LowRank):
        left = torch.cat([update.left, extra.left.to(update.left.device)], dim=1)
        return LowRank(left, torch.cat([update.right, extra.right.to(update.right.device)], dim=1))
    whole = update.dense()
    return Dense(whole + extra.dense().to(whole.device))


def _oriented(model: EditableModel, name: str, stored: Tensor) -> Tensor:
    """A projection's parameter as (d_out, d_in)."""
    linear = isinstance(model.hf.get_submodule(name.removesuffix(".weight")), torch.nn.Linear)
    return stored if linear else stored.t()
