"""What must be gone: share of superseded or retracted answers that the model still gives. Lower is better."""

from __future__ import annotations

from collections.abc import Sequence

from checks.metrics.outcome import ProbeOutcome, of_kind, share_score
from warehouse.records import Score


def obsolete(outcomes: Sequence[ProbeOutcome]) -> Score:
    """Over probes whose targets are the old answers, the share still answered so (METRICS.md)."""
    return share_score("obsolete", "", [o.after.exact for o in of_kind(outcomes, "obsolete")])
