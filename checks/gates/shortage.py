"""What a rule that has too few probes lacks, in numbers, and what would bring more of them."""

from __future__ import annotations

from collections.abc import Sequence

from warehouse.records import GateRule, Score

_EDITS = "bring more edits to one night"
_REWORDED = f"{_EDITS}, with `rephrases` of your own"
#: Metric -> what its `n` counts, and what would bring more of it.
_BRINGS: dict[str, tuple[str, str]] = {
    "SR": ("edits of the night", _EDITS),
    "GR": ("edits with a paraphrase", _REWORDED),
    "ES": ("edits with a paraphrase", _REWORDED),
    "SRR": ("edits in force", _EDITS),
    "GRR": ("edits in force with a paraphrase", _REWORDED),
    "ESR": ("edits in force with a paraphrase", _REWORDED),
    "locality": ("other facts asked that the model knows", "see `errata world known` for what it knows"),
    "portability": ("questions that follow from the edits", _EDITS),
    "obsolete": ("old answers", f"{_EDITS} that replace an answer"),
    "DD": ("standing facts that the model knows", "see `errata world known`"),
    "perplexity_ratio": ("held texts", "raise `probes.held_texts`"),
    "KL": ("held prompts", "raise `probes.drawdown`"),
    "fluency": ("continuations", _EDITS),
    "served_agreement": ("answers that the measured model gives rightly", _EDITS),
}
_LOWER = "lower min_n in a policy of your own"


def shortage(rule: GateRule, score: Score, scores: Sequence[Score]) -> str:
    """A sentence for a score over fewer than `min_n`: how many it counts, of how many where that is known, and what to do.

    Args:
        scores: of the whole report. Drawdown over all its probes tells how many were asked.
    """
    what, _ = _BRINGS.get(rule.metric, ("probes", ""))
    asked = next((s.n for s in scores if (s.metric, s.slice) == ("DD", "")), None)
    if (rule.metric, rule.slice) == ("DD", "known") and asked is not None:
        return f"The model answers {score.n} of {asked} standing facts; {rule.min_n} are asked for: {what_to_do(rule)}."
    return f"It counts {score.n} ({what}); {rule.min_n} are asked for: {what_to_do(rule)}."


def what_to_do(rule: GateRule) -> str:
    """How a later night gets more of what the rule counts, or does without."""
    _, brings = _BRINGS.get(rule.metric, ("", ""))
    return f"{brings}, or {_LOWER}" if brings else _LOWER
