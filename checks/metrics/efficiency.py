"""What the edits cost: time, memory, patch size and passes, as scores beside the quality they bought.

Source: METRICS.md. Whoever ran the edits measures; these scores have no interval, and they are no part of a report's
identity.
"""

from __future__ import annotations

from dataclasses import dataclass

from warehouse.records import Score


@dataclass(frozen=True)
class EditCost:
    """Measured over one run of `num_edits` edits; None: not counted."""

    num_edits: int
    seconds: float
    patch_bytes: int
    peak_memory_bytes: int | None = None
    forward_passes: int | None = None
    backward_passes: int | None = None


def efficiency(cost: EditCost) -> list[Score]:
    """Edits per second, seconds per edit, bytes and passes; rates are None where no edit or no time was spent."""
    per_edit = {
        "seconds_per_edit": cost.seconds / cost.num_edits if cost.num_edits else None,
        "edits_per_second": cost.num_edits / cost.seconds if cost.seconds > 0 else None,
        "patch_bytes": float(cost.patch_bytes),
    }
    counted = ("peak_memory_bytes", "forward_passes", "backward_passes")
    per_edit |= {name: float(value) for name in counted if (value := getattr(cost, name)) is not None}
    return [
        Score(metric="efficiency", slice=name, value=value, low=None, high=None, n=cost.num_edits)
        for name, value in per_edit.items()
    ]
