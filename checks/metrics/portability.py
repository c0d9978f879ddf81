"""What must follow from the edit: the subject by another name, one more hop, the inverse fact.

Source: METRICS.md. Slice `X` is the edited model's rate; `X:before` is the base rate, what `f_0` gets on the same
probes; `X:gain` is the paired difference. A model that cannot chain two facts at all has a base rate near zero, and
its one-hop rate then says little about the editor.
"""

from __future__ import annotations

from collections.abc import Sequence

from checks.intervals import cluster_means
from checks.metrics.outcome import ProbeOutcome, mean_score, of_kind, share_score
from warehouse.records import Score

SLICES = ("alias", "one_hop", "logical")


def portability(outcomes: Sequence[ProbeOutcome], seed: int = 0) -> list[Score]:
    """Rate for each slice, with base rate and gain where `f_0` was asked."""
    scores = []
    for kind in SLICES:
        asked = of_kind(outcomes, kind)
        scores.append(share_score("portability", kind, [o.after.exact for o in asked]))
        pairs = [(o.after.exact, o.before.exact, o.cluster) for o in asked if o.before is not None]
        scores.append(share_score("portability", f"{kind}:before", [before for _, before, _ in pairs]))
        gains = [float(after) - float(before) for after, before, _ in pairs]
        per_edit = cluster_means(gains, [edit for _, _, edit in pairs]) if gains else []
        scores.append(mean_score("portability", f"{kind}:gain", per_edit, seed))
    return scores
