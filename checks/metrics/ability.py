"""Can the model still do what rests on no fact: sums, completions, small instructions.

Source: `checks/ability/items.yaml`. As with drawdown, only what `f_0` answers counts, so that a new right answer cannot pay for
a lost one; slice `base` is `f_0`'s own share of all items and says how much the rest stands on.
"""

from __future__ import annotations

from collections.abc import Sequence

from checks.ability.items import AbilityItem
from checks.metrics.outcome import share_score
from warehouse.records import Score


def ability(items: Sequence[AbilityItem], before: Sequence[bool], after: Sequence[bool]) -> list[Score]:
    """Share of the items that `f_0` answers which `f_N` still answers: over all, for each kind, and `base`.

    Raises:
        ValueError: `before` or `after` is not one answer an item.
    """
    told = list(zip(items, before, after, strict=True))
    scores = [share_score("ability", "", [still for _, known, still in told if known])]
    for kind in dict.fromkeys(item.kind for item in items):
        scores.append(share_score("ability", kind, [still for item, known, still in told if known and item.kind == kind]))
    return [*scores, share_score("ability", "base", list(before))]
