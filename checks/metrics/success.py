"""Did the edit take: success rate (SR), edit success (ES), and token accuracy under its own name.

Source: METRICS.md; Mazzia et al., eq. 10 and 12. The paper's ES is a sum; ours is halved so that it stays in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from checks.metrics.outcome import ProbeOutcome, of_kind, rate_by_edit, rate_score, share_score
from warehouse.records import Score


def success_rate(outcomes: Sequence[ProbeOutcome], metric: str = "SR", kinds: Sequence[str] = ("success",)) -> Score:
    """Share of edits whose own prompt gets the new answer (eq. 10); a proportion, so Wilson's interval."""
    return share_score(metric, "", [o.after.exact for o in of_kind(outcomes, *kinds)])


def edit_success(
    outcomes: Sequence[ProbeOutcome], metric: str = "ES", seed: int = 0, kinds: Sequence[str] = ("success",)
) -> Score:
    """Mean over edits of (own prompt right + share of paraphrases right) / 2 (eq. 12, halved).

    An edit without a paraphrase has no such sum and is left out; `n` tells how many edits took part.
    """
    own = _share_by_edit(of_kind(outcomes, *kinds))
    paraphrased = _share_by_edit(of_kind(outcomes, "rephrase"))
    both = sorted(own.keys() & paraphrased.keys())
    return rate_score(metric, "", np.array([(own[edit] + paraphrased[edit]) / 2 for edit in both]), seed)


def token_accuracy(outcomes: Sequence[ProbeOutcome], seed: int = 0) -> list[Score]:
    """Share of answer tokens right under teacher forcing: the rate that several peers report. It never gates."""
    scores = []
    for kind in ("success", "rephrase"):
        asked = of_kind(outcomes, kind)
        values = [o.after.token_accuracy for o in asked]
        scores.append(rate_by_edit("token_accuracy", kind, values, [o.cluster for o in asked], seed))
    return scores


def _share_by_edit(outcomes: Sequence[ProbeOutcome]) -> dict[str, float]:
    hits: dict[str, list[bool]] = {}
    for outcome in outcomes:
        hits.setdefault(outcome.cluster, []).append(outcome.after.exact)
    return {edit: sum(found) / len(found) for edit, found in hits.items()}
