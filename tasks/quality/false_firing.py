"""False firing: how often edits that should wait for their subject act on plain text."""

from __future__ import annotations

from collections.abc import Sequence

from checks.intervals import bootstrap_ratio, generator_for, wilson
from editors.model import EditableModel
from editors.patches.slots import opened_tokens
from warehouse.records import Score


def false_firing(model: EditableModel, texts: Sequence[str], seed: int = 0) -> list[Score]:
    """Share of the held texts' tokens at which any slot opens; nothing where the model wears no slot.

    The texts are about anything: where one names an edited subject, its slot opens rightly and is counted all the same, so
    that the figure errs on the strict side. The interval resamples texts; at no firing at all it is Wilson's.
    """
    counts = opened_tokens(model, texts) if texts else None
    if not counts:
        return []
    opened, tokens = (list(map(float, column)) for column in zip(*counts, strict=True))
    total = int(sum(tokens))
    if not sum(opened):
        return [Score(metric="false_firing", value=0.0, low=0.0, high=wilson(0, total).high, n=total)]
    ratio = bootstrap_ratio(opened, tokens, generator_for(seed, "false_firing"))
    return [Score(metric="false_firing", value=sum(opened) / total, low=ratio.low, high=ratio.high, n=total)]
