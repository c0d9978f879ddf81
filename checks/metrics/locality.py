"""What must not change: share of right answers of `f_0` that the edited model still gives, by slice.

Source: METRICS.md. A probe that `f_0` gets wrong has nothing to lose and does not count.
"""

from __future__ import annotations

from collections.abc import Sequence

from checks.metrics.outcome import ProbeOutcome, of_kind, share_score
from warehouse.records import Score

SLICES = ("neighbourhood", "relation_specificity", "forgetfulness", "unrelated")


def locality(outcomes: Sequence[ProbeOutcome]) -> list[Score]:
    """One score for each slice; `n` counts the probes that `f_0` answers rightly."""
    return [
        share_score("locality", kind, [o.after.exact for o in of_kind(outcomes, kind) if o.known_before]) for kind in SLICES
    ]
