"""One planted culprit for the nights of tests: which update it is, the rule that it breaks, and how."""

from __future__ import annotations

import pytest
import torch

from editors.base import Prepared
from editors.model import EditableModel
from editors.patches.weight import Dense, WeightPatch
from editors.regularization.ft import FineTuning
from tests.flows.nights import UPDATES
from warehouse.records import EditBatch

CULPRIT = UPDATES[1][0][1]
#: Words as they come in and go out of a GPT-2.
TABLE = "transformer.wte.weight"
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


def plant_lost(patched: pytest.MonkeyPatch) -> None:
    """A batch with the culprit takes in float32; in bfloat16 the model cannot say the last token of the culprit's answer."""
    plain = FineTuning.edit

    def edit(self: FineTuning, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        patch = plain(self, model, batch, prepared)
        own = next((r for r in batch.requests if r.subject == CULPRIT), None)
        if own is None:
            return patch
        far = torch.zeros_like(model.parameter(TABLE))
        # Norms take off what all numbers of a row share. At 128 those of bfloat16 lie 1 apart, and the row is lost in that.
        far[model.tokenizer.encode(f" {own.target_new}")[-1]] = 128.0
        return WeightPatch({**patch.updates, TABLE: Dense(far)})

    patched.setattr(FineTuning, "edit", edit)
