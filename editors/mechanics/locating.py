"""What editors share that write at the subject's last token and solve against the second moment of generic keys."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

from editors.base import NO_BENCH, Corpus, Prepared, Workbench
from editors.groups import GroupEditor
from editors.mechanics.second_moment import LocatePreparation, PreparationReader, prepare_locate
from editors.mechanics.settings import LocateEditConfig
from editors.model import EditableModel

LocateT = TypeVar("LocateT", bound=LocateEditConfig)


class LocatingEditor(GroupEditor[LocateT]):
    """Prepares contexts, second moments and norms of its layers, and reads them once for many edits."""

    joint = True

    def __init__(self, config: LocateT) -> None:
        super().__init__(config)
        self._read = PreparationReader()

    @property
    @abstractmethod
    def layers(self) -> tuple[int, ...]:
        """The layers that it writes, ascending."""

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """See `prepare_locate`."""
        return prepare_locate(model, corpus, self.layers, self.config)

    def preparation_key(self) -> str:
        """See `LocateEditConfig.preparation_digest`."""
        return self.config.preparation_digest(self.layers)

    def known(self, model: EditableModel, prepared: Prepared) -> LocatePreparation:
        """The preparation on the model's device.

        Raises:
            ValueError: a layer was not prepared; the configuration changed since.
        """
        return self._read(prepared, self.layers, model.device)
