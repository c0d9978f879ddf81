"""Editors that compute many independent patches in one pass: what they take of the model is taken for all at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from editors.base import ConfigT, Editor, Prepared
from editors.mechanics.paraphrases import in_every_form
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from warehouse.records import EditBatch, EditRequest


class GroupEditor(Editor[ConfigT]):
    """One batch is one group, independent requests are groups of one: both are the same computation.

    `joint`: the editor itself reads the other forms of a request (one value for all of them); else each is a row of its group.
    """

    joint: ClassVar[bool] = False

    @abstractmethod
    def edit_groups(
        self, model: EditableModel, groups: Sequence[Sequence[EditRequest]], prepared: Prepared
    ) -> list[WeightPatch]:
        """One patch for each group, all on the model as it stands and none knowing of the others; raises as `edit`."""

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        """See `Editor.edit`."""
        return self.edit_groups(model, [self._rows(batch.requests)], prepared)[0]

    def edit_each(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[WeightPatch]:
        """See `Editor.edit_each`."""
        return self.edit_groups(model, [self._rows([request]) for request in requests], prepared) if requests else []

    def _rows(self, requests: Sequence[EditRequest]) -> Sequence[EditRequest]:
        return requests if self.joint else in_every_form(requests)
