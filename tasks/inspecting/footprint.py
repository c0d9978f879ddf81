"""Where edits changed a model: in its weights, and in slots beside them."""

from __future__ import annotations

from editors.analysis.footprint import changed_weights, footprint, slot_footprint, worn_slots
from tasks.serving.checkpoints import find_checkpoint
from tasks.serving.models import at_checkpoint
from tasks.settings import Settings
from tasks.workspace import store_of
from warehouse.records import Record


class ParameterFootprint(Record):
    """See `editors.analysis.footprint.Footprint`."""

    parameter: str
    shape: tuple[int, ...]
    norm_ratio: float
    changed: float
    effective_rank: float
    spectral_ratio: float


class SlotsFootprint(Record):
    """See `editors.analysis.footprint.SlotFootprint`."""

    site: str
    slots: int
    edits: int
    added: int
    changed: int
    removed: int
    median_norm: float


class EditFootprint(Record):
    """Where edits lie: in the weights, in slots beside them; both empty for memories and texts."""

    weights: tuple[ParameterFootprint, ...]
    slots: tuple[SlotsFootprint, ...]


def edit_footprint(settings: Settings, checkpoint: str, since: str = "base") -> EditFootprint:
    """Every parameter that a checkpoint's patches changed since another, and the slots beside the weights.

    Raises:
        NotFound: no such checkpoint.
    """
    store = store_of(settings)
    earlier = at_checkpoint(settings, store, find_checkpoint(settings, since))
    weights, slots = changed_weights(earlier), worn_slots(earlier)
    model = at_checkpoint(settings, store, find_checkpoint(settings, checkpoint))
    return EditFootprint(
        weights=tuple(ParameterFootprint(**vars(found)) for found in footprint(model, weights)),
        slots=tuple(SlotsFootprint(**vars(found)) for found in slot_footprint(model, slots)),
    )
