"""One planted culprit for the nights of tests: which update it is, the rule that it breaks, and how."""

from __future__ import annotations

import pytest

from editors.base import Prepared
from editors.model import EditableModel
from editors.patches.weight import Dense, WeightPatch
from editors.regularization.ft import FineTuning
from tests.flows.nights import UPDATES
from warehouse.records import EditBatch

CULPRIT = UPDATES[1][0][1]
RULE = "{metric: SR, op: '>=', threshold: 0.9, on_fail: reject, judge: point, min_n: 2}"


def plant(patched: pytest.MonkeyPatch) -> None:
    """A batch with the culprit gets the opposite of its update, which breaks every other edit of the batch."""
    plain = FineTuning.edit

    def edit(self: FineTuning, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        patch = plain(self, model, batch, prepared)
        if CULPRIT not in {r.subject for r in batch.requests}:
            return patch
        return WeightPatch({name: Dense(-update.dense()) for name, update in patch.updates.items()})

    patched.setattr(FineTuning, "edit", edit)
