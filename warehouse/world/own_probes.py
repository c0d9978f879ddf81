"""Questions that came with the requests themselves: locality, portability and multi-hop questions of benchmark rows."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from warehouse.database.connection import Warehouse
from warehouse.errors import SourceError
from warehouse.records import EditRequest, Probe, ProbeKind, UpdateRecord
from warehouse.sources import benchmark, knowedit

#: Kinds that must not change: a question about something that is edited itself is none of them.
_STAYS: tuple[ProbeKind, ...] = ("neighbourhood", "relation_specificity", "forgetfulness", "unrelated")
_READERS = {"benchmark": benchmark.to_probes, "knowedit": knowedit.to_probes}


def own_probes(wh: Warehouse, requests: Sequence[EditRequest], in_force: Sequence[EditRequest]) -> list[Probe]:
    """The questions of the records that tonight's requests came from; none where their source asks none.

    Args:
        requests: tonight's.
        in_force: every request that the candidate must show. What must stay is not asked about the subject of another one.
    """
    asked = pd.DataFrame({"request_id": [request.request_id for request in requests]}, dtype="str")
    records = wh.records(
        UpdateRecord,
        """SELECT u.record_id, u.source, u.night, u.received_at, u.raw FROM verdicts v JOIN updates u USING (source, record_id)
           SEMI JOIN asked ON asked.request_id = v.request_id
           WHERE split_part(u.source, ':', 1) IN ('benchmark', 'knowedit') ORDER BY u.received_seq""",
        asked=asked,
    )
    own = {request.request_id: request.subject for request in requests}
    subjects = {request.subject for request in in_force}
    found = []
    for record in records:
        try:
            probes = _READERS[record.source.partition(":")[0]](record)
        except SourceError:  # the request was readable then; a record of an older version may ask nothing any more
            continue
        for probe in probes:
            others = subjects - {own.get(probe.request_id or "", "")}
            if probe.kind not in _STAYS or not any(subject in probe.prompt for subject in others):
                found.append(probe)
    return found
