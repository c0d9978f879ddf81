"""Does the edit hold in other words: generalization rate (GR).

Source: METRICS.md; Mazzia et al., eq. 11.
"""

from __future__ import annotations

from collections.abc import Sequence

from checks.metrics.outcome import ProbeOutcome, of_kind, rate_by_edit
from warehouse.records import Score


def generalization_rate(
    outcomes: Sequence[ProbeOutcome],
    metric: str = "GR",
    seed: int = 0,
    kinds: Sequence[str] = ("rephrase",),
    slice_name: str = "",
) -> Score:
    """Mean over edits of the share of paraphrases that get the new answer; `n` counts edits with a paraphrase."""
    asked = of_kind(outcomes, *kinds)
    return rate_by_edit(metric, slice_name, [float(o.after.exact) for o in asked], [o.cluster for o in asked], seed)
