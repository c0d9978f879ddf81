"""What editors that wrap another share: the host by name, its numbers, its preparation, and its part of the card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator

from editors import catalogue, presets
from editors.base import Editor, EditorCard, EditorConfig, Patch, Prepared
from editors.errors import EditorError, RefusedEditor, UnknownEditor
from editors.mechanics.settings import LocateEditConfig
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from editors.session import batch_of
from warehouse.digests import digest_of
from warehouse.records import EditBatch, EditRequest


class HostedConfig(EditorConfig):
    """Attributes:
    host: name of the locate-and-edit method that computes the update.
    host_overrides: over the host's own preset for the model.
    """

    host: str = "memit"
    host_overrides: dict[str, Any] = Field(default_factory=dict)

    @field_validator("host")
    @classmethod
    def _locates(cls, host: str) -> str:
        try:
            accepted = issubclass(catalogue.editor_class(host).config_class, LocateEditConfig)
        except (UnknownEditor, RefusedEditor) as error:
            raise ValueError(str(error)) from error
        if not accepted:
            raise ValueError(f"host {host!r} is not a locate-and-edit method; choose one such as memit, r_rome or alphaedit")
        return host


class Host:
    """The wrapped editor, made for the model at hand; one for as long as the model stays."""

    def __init__(self, config: HostedConfig, **forced: Any) -> None:
        self._config, self._forced = config, forced
        self._last: tuple[str, Editor[Any]] | None = None

    def on(self, model: EditableModel) -> Editor[Any]:
        """The host with its preset for this model, changed by the overrides.

        Raises:
            UnsupportedModel: the host has no preset for the model, or an override is not one of its numbers.
        """
        if self._last is None or self._last[0] != model.base_digest:
            numbers = {"seed": self._config.seed, **self._config.host_overrides, **self._forced}
            self._last = (model.base_digest, presets.load_editor(self._config.host, model, numbers))
        return self._last[1]

    def card(self, own: EditorCard) -> EditorCard:
        """The wrapper's card with what only the host decides."""
        theirs = catalogue.editor_class(self._config.host).card
        return replace(
            own,
            max_batch=theirs.max_batch,
            modes=theirs.modes,
            experimental=theirs.experimental,
            why_not=theirs.why_not,
            needs_preparation=theirs.needs_preparation,
            only_xy=theirs.only_xy,
        )

    def preparation_key(self, *own: Any) -> str:
        """All that the host's preparation can depend on: which of its numbers hold is known once there is a model."""
        config = self._config
        sections = presets.sections(config.host)
        return digest_of("hosted", config.host, config.host_overrides, config.seed, sections, self._forced, list(own))

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        """The host's patch for a batch.

        Raises:
            EditorError: it is not one of weights.
        """
        return self._weights(self.on(model).edit(model, batch, prepared), batch)

    def edit_each(self, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared) -> list[WeightPatch]:
        """The host's independent patches; raises as `edit`."""
        found = self.on(model).edit_each(model, requests, prepared)
        return [self._weights(patch, batch_of([r])) for patch, r in zip(found, requests, strict=True)]

    def _weights(self, patch: Patch, batch: EditBatch) -> WeightPatch:
        if not isinstance(patch, WeightPatch):
            host = self._config.host
            raise EditorError(
                f"host {host} left a {type(patch).__name__} for batch {batch.batch_id}; only weights can be wrapped"
            )
        return patch
