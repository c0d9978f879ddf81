"""Give every record of a night its verdict, and state the accepted ones as edit requests."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from prefect import task

from checks.door.identity import reused_records
from checks.door.receipt import night_end
from checks.door.text_safety_policy import shipped_door
from checks.door.trust import shipped_trust
from checks.judging.verdicts import NightVerdicts, validate_night
from tasks.serving.forms import how_to_ask
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.trail import note
from tasks.workspace import night_folder, warehouse
from warehouse.digests import digest_of
from warehouse.lineages.audit import verdicts_payload
from warehouse.nights.intake import record_verdicts, updates_of, verdicts_of
from warehouse.nights.quarantine import join_released, waivers
from warehouse.nights.runs import begun_at
from warehouse.records import EditRequest, Verdict
from warehouse.reference.roles import read_roles
from warehouse.reference.world import Template
from warehouse.world.changes import parse_change
from warehouse.world.facts import apply_fact_changes, with_other_relations
from warehouse.world.properties import put_properties
from warehouse.world.templates import templates_of
from warehouse.world.verbalise import Unverbalised, verbalise, with_rephrases

log = logging.getLogger(__name__)


def requests_from(result: NightVerdicts, templates: Mapping[str, Template]) -> tuple[list[EditRequest], dict[str, str]]:
    """Edit requests of the records that reach an editor, and the request of each record by id."""
    requests: list[EditRequest] = []
    of_record: dict[str, str] = {}
    for record_id, change in zip(result.edit_ids, result.edits, strict=True):
        request = with_rephrases(change, templates) if isinstance(change, EditRequest) else verbalise(change, templates)
        if isinstance(request, Unverbalised):
            log.warning("%s", request.sentence)
            continue
        requests.append(request)
        of_record[record_id] = request.request_id
    return requests, of_record


@task(name="validate", **STEP)
def validate(settings: Settings, night: str) -> dict[str, int]:
    """Judge a night once; verdicts, requests and fact changes are written together or not at all.

    Returns:
        Records by verdict.

    Raises:
        ValidatorBroke: an expectation could not be computed; the night stops and nothing is written.
    """
    asker = how_to_ask(settings)
    with warehouse(settings) as wh:
        put_properties(wh, Path(settings.properties) if settings.properties else None)
        judged: list[Verdict] = verdicts_of(wh, night)
        if not judged:
            join_released(wh, night)
        records = updates_of(wh, night)
        if len(judged) < len(records):
            changes = [parse_change(r) for r in records]
            times = {r.record_id: getattr(c, "received_at", None) for r, c in zip(records, changes, strict=True)}
            now, wrong_clocks = night_end(night, times, begun_at(wh, night) or datetime.now(UTC))
            result = validate_night(
                wh,
                night,
                changes,
                now,
                record_ids=[r.record_id for r in records],
                evidence=read_roles(),
                waived=waivers(wh, night),
                faults=reused_records(records) | wrong_clocks,
            )
            requests, of_record = requests_from(result, templates_of(wh))
            requests = [asker.state(request) for request in with_other_relations(wh, requests)]
            judged = [v.model_copy(update={"request_id": of_record.get(v.record_id)}) for v in result.verdicts]
            source_of = {r.record_id: r.source for r in records}
            with wh.transaction():
                for source in sorted(set(source_of.values())):
                    mine = [v for v in judged if source_of[v.record_id] == source]
                    named = {v.request_id for v in mine}
                    record_verdicts(wh, night, source, mine, [r for r in requests if r.request_id in named])
                apply_fact_changes(wh, night, result.added_frame(), result.ended_triples())
                # Verdicts are the same for every lineage.
                why = "; ".join(f"{count} {verdict}" for verdict, count in sorted(_counts(judged).items()))
                note(settings, wh, "verdicts", night, verdicts_payload(wh, night), reason=f"judged: {why}", lineage="")
            folder = night_folder(settings, night)
            folder.mkdir(parents=True, exist_ok=True)
            # What judged the night: a changed policy changes the digest.
            judges = {"trust": digest_of(shipped_trust()), "door": digest_of(shipped_door())}
            found = {**result.suite, "policies": judges}
            (folder / "suite.json").write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")
    counts = _counts(judged)
    log.info("night %s: %s", night, counts)
    return counts


def _counts(judged: list[Verdict]) -> dict[str, int]:
    return dict(Counter(v.verdict for v in judged))
