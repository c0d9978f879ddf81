"""Does what will be served answer as what was measured: the exported folder in its dtype against the model of the gates.

Ours; no paper has it. An edit that is lost on the way to the server was not made for anybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from checks.metrics.outcome import share_score
from warehouse.records import Prediction, Probe, Score

SLICES = ("edits", "bystanders")


def served_agreement(
    edits: Sequence[Probe], bystanders: Sequence[Probe], measured: Mapping[str, Prediction], served: Mapping[str, Prediction]
) -> tuple[Score, ...]:
    """Of what the measured model answers rightly, the share that the served one does too; one score for each slice.

    Args:
        measured, served: predictions by probe id, of all the probes.
    """
    return tuple(
        share_score(
            "served_agreement",
            name,
            [served[p.probe_id].exact for p in {p.probe_id: p for p in probes}.values() if measured[p.probe_id].exact],
        )
        for name, probes in zip(SLICES, (edits, bystanders), strict=True)
    )


def lost_in_serving(
    edits: Sequence[Probe], measured: Mapping[str, Prediction], served: Mapping[str, Prediction]
) -> tuple[str, ...]:
    """Ids of the requests of which the measured model answers something rightly that the served one does not."""
    lost = {p.request_id for p in edits if measured[p.probe_id].exact and not served[p.probe_id].exact}
    return tuple(sorted(request for request in lost if request is not None))
