"""Do the edits of all nights still hold under the final model: SRR, GRR and ESR.

Source: METRICS.md: SR, GR and ES with `f_N` in place of `f_n`, over every edit still in force. The caller gives the
retain set: an edit that a later one superseded or retracted is not in it, and tonight's own edits are.
"""

from __future__ import annotations

from collections.abc import Sequence

from checks.metrics.generalization import generalization_rate
from checks.metrics.outcome import ProbeOutcome
from checks.metrics.success import edit_success, success_rate
from warehouse.records import Score

#: A retain set names its own-prompt probes either way.
OWN_PROMPT_KINDS = ("success", "retain")


def retention(outcomes: Sequence[ProbeOutcome], seed: int = 0) -> list[Score]:
    """The three rates over a retain set (probes of kind `success` or `retain`, and `rephrase`)."""
    return [
        success_rate(outcomes, "SRR", OWN_PROMPT_KINDS),
        generalization_rate(outcomes, "GRR", seed),
        edit_success(outcomes, "ESR", seed, OWN_PROMPT_KINDS),
    ]
