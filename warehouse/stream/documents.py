"""From stored events to update records: entity documents before and after, their difference, labels for people.

Nothing is written here and no database is open while Wikidata is asked: `resolve` takes what the warehouse knows and
gives back what it shall keep.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from warehouse.digests import digest_of
from warehouse.records import UpdateRecord
from warehouse.stream.pending import SOURCE, EventOutcome, PendingEvent
from warehouse.stream.wikidata_http import Unavailable, WikidataClient
from warehouse.wikidata.entities import (
    EntityDocument,
    Provenance,
    SetAside,
    StatementChange,
    change_record,
    diff_statements,
    parse_entity,
    record_id_of,
)

logger = logging.getLogger(__name__)

Mode = Literal["revisions", "latest"]
#: A fold of several edits is trusted as its least trusted one.
_TRUST = ("temporary_account", "newcomer", "unknown", "bot", "autoconfirmed")


@dataclass(frozen=True)
class Known:
    """What the warehouse knows of the events' items."""

    states: Mapping[str, EntityDocument] = field(default_factory=dict)
    done: Collection[tuple[str, int]] = ()


@dataclass(frozen=True)
class RevisionDifference:
    """One event with what it changed; `entity` is the newer side and is kept as the item's state where it has a revision."""

    event: PendingEvent
    outcome: str
    reason: str
    changes: tuple[StatementChange, ...] = ()
    entity: EntityDocument | None = None
    revision_old: int | None = None


@dataclass
class Resolved:
    """Everything that one step has found out.

    Attributes:
        counts: ("property", id) of changes that are not wanted, ("left_out", reason) of parts that could not be read.
        problem: why the step ended before its last event; "" where it did not.
    """

    differences: list[RevisionDifference] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    problem: str = ""


def resolve(
    client: WikidataClient,
    events: Sequence[PendingEvent],
    known: Known,
    properties: Collection[str] | None,
    mode: Mode = "revisions",
) -> Resolved:
    """Find what each event changed; stops without an error where Wikidata cannot be reached.

    Args:
        properties: changes of other properties are counted and left out; None: all are wanted.
        mode: "revisions" compares the two revisions of each edit; "latest" compares the last known state of each item
            with its current one, fifty items a request, and folds the edits between into one.
    """
    found = Resolved()
    step = _Step(client, dict(known.states), set(known.done), found)
    try:
        if mode == "latest":
            step.by_item(events)
        else:
            for event in events:
                found.differences.append(step.by_revision(event))
    except Unavailable as error:
        found.problem = str(error)
    for index, difference in enumerate(found.differences):
        found.differences[index] = _wanted(difference, properties, found)
    return found


class _Step:
    def __init__(
        self, client: WikidataClient, states: dict[str, EntityDocument], done: set[tuple[str, int]], found: Resolved
    ) -> None:
        self._client, self._states, self._done, self._found = client, states, done, found

    # ------------------------------------------------------------ one edit

    def by_revision(self, event: PendingEvent) -> RevisionDifference:
        if event.rev_new is not None and (event.entity_id, event.rev_new) in self._done:
            return RevisionDifference(event, "set_aside", "redelivered_revision")
        if event.action == "tombstone":
            return self._deleted(event)
        after = self._document(event.entity_id, event.rev_new)
        if isinstance(after, SetAside):
            return RevisionDifference(event, "set_aside", self._why_missing(event, after))
        if after.id != event.entity_id:
            self._found.redirects[event.entity_id] = after.id
            return RevisionDifference(event, "set_aside", "redirect")
        before = self._base(event)
        if isinstance(before, SetAside):
            # The next edit has a base again.
            return self._done_with(RevisionDifference(event, "set_aside", "no_base", (), after))
        changes = diff_statements(before, after, references=False)
        old = event.rev_old if event.rev_new is not None or before is None else before.revision
        return self._done_with(RevisionDifference(event, "changed", "", changes, after, old))

    def _base(self, event: PendingEvent) -> EntityDocument | SetAside | None:
        """The document before the edit; None: there was none."""
        held = self._states.get(event.entity_id)
        if event.rev_new is None:
            return held
        if event.rev_old is None:
            return None
        if held is not None and held.revision == event.rev_old:
            return held
        before = self._document(event.entity_id, event.rev_old)
        if isinstance(before, EntityDocument) and before.id == event.entity_id:
            return before
        # The revision before is deleted: what the warehouse held then is the next best.
        is_older = held is not None and held.revision is not None and held.revision < event.rev_new
        return held if is_older else SetAside(event.entity_id, "missing", "no document before the edit")

    def _deleted(self, event: PendingEvent) -> RevisionDifference:
        held = self._states.get(event.entity_id)
        if held is None:
            return RevisionDifference(event, "set_aside", "item_deleted")
        return RevisionDifference(event, "changed", "item_deleted", diff_statements(held, None), None, held.revision)

    def _document(self, entity_id: str, revision: int | None) -> EntityDocument | SetAside:
        answer = self._client.revision(entity_id, revision)
        if answer.document is None:
            reason = "too_large" if answer.reason == "too_large" else "missing"
            return SetAside(entity_id, reason, f"Wikidata has no document of {entity_id} at {revision}: {answer.reason}")
        return parse_entity(answer.document, entity_id)

    def _why_missing(self, event: PendingEvent, aside: SetAside) -> str:
        if aside.reason == "redirect" and aside.target:
            self._found.redirects[event.entity_id] = aside.target
        if aside.reason != "missing" or event.rev_new is None:
            return aside.reason if aside.reason != "missing" else "item_deleted"
        body = self._client.entities([event.entity_id], "info").get(event.entity_id)
        return "item_deleted" if body is None or "missing" in body else "deleted_revision"

    def _done_with(self, difference: RevisionDifference) -> RevisionDifference:
        entity, event = difference.entity, difference.event
        if entity is not None and entity.revision is not None:
            held = self._states.get(entity.id)
            if held is None or (held.revision or 0) < entity.revision:
                self._states[entity.id] = entity
        if event.rev_new is not None:
            self._done.add((event.entity_id, event.rev_new))
        return difference

    # ------------------------------------------------------------ the current state of many items

    def by_item(self, events: Sequence[PendingEvent]) -> None:
        groups: dict[str, list[PendingEvent]] = {}
        for event in events:
            if event.action == "tombstone" or (event.entity_id, event.rev_new) in self._done:
                self._found.differences.append(self.by_revision(event))
            else:
                groups.setdefault(event.entity_id, []).append(event)
        bodies = self._client.entities(list(groups))
        for entity_id, group in groups.items():
            self._found.differences += self._folded(entity_id, group, bodies.get(entity_id))

    def _folded(self, entity_id: str, group: Sequence[PendingEvent], body: object) -> list[RevisionDifference]:
        newest = max(group, key=lambda event: event.rev_new or 0)
        if body is None:
            return [RevisionDifference(event, "set_aside", "item_deleted") for event in group]
        after = parse_entity({"entities": {entity_id: body}}, entity_id)
        if isinstance(after, EntityDocument) and (after.revision or 0) < (newest.rev_new or 0):
            # The answer comes from a lagging replica.
            after = self._document(entity_id, newest.rev_new)
        if isinstance(after, SetAside):
            reason = "item_deleted" if after.reason == "missing" else after.reason
            return [RevisionDifference(event, "set_aside", reason) for event in group]
        if after.id != entity_id:
            self._found.redirects[entity_id] = after.id
            return [RevisionDifference(event, "set_aside", "redirect") for event in group]
        held, first = self._states.get(entity_id), min(group, key=lambda event: event.rev_new or 0)
        before = held if held is not None else self._base(first)
        if held is not None and (held.revision or 0) >= (after.revision or 0):
            return [RevisionDifference(event, "unchanged", "state_is_newer") for event in group]
        if isinstance(before, SetAside):
            return [self._done_with(RevisionDifference(event, "set_aside", "no_base", (), after)) for event in group]
        changes = diff_statements(before, after, references=False)
        voice = min(group, key=lambda event: (event.patrolled, _TRUST.index(event.editor_class)))
        told = RevisionDifference(voice, "changed", "", changes, after, before.revision if before else None)
        rest = [RevisionDifference(event, "unchanged", "folded") for event in group if event is not voice]
        return [self._done_with(told), *map(self._done_with, rest)]


def _wanted(difference: RevisionDifference, properties: Collection[str] | None, found: Resolved) -> RevisionDifference:
    if difference.entity is not None:
        found.counts.update(("left_out", part.reason) for part in difference.entity.left_out)
    if difference.outcome != "changed":
        return difference
    believed = [c for c in difference.changes if c.touches_belief]
    wanted = [c for c in believed if properties is None or c.pid in properties]
    found.counts["left_out", "not_believed"] += len(difference.changes) - len(believed)
    found.counts.update(("property", c.pid) for c in believed if c not in wanted)
    reason = difference.reason if wanted else "other_property" if believed else "no_statement_change"
    return RevisionDifference(
        difference.event,
        "changed" if wanted else "unchanged",
        reason,
        tuple(wanted),
        difference.entity,
        difference.revision_old,
    )


# ---------------------------------------------------------------- labels and records


def mentioned(found: Resolved) -> list[str]:
    """Ids whose labels the records need: values, properties, and subjects of which there is no document left."""
    ids: dict[str, None] = {}
    for difference in found.differences:
        for change in difference.changes:
            ids[change.pid] = None
            for side in (change.old, change.new):
                if side is not None and side.snak.value is not None and side.snak.value.type == "item":
                    ids[side.snak.value.id] = None
        if difference.entity is None and difference.changes:
            ids[difference.event.entity_id] = None
    return list(ids)


def fetch_labels(client: WikidataClient, ids: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """(English labels, redirects) of ids; "" where there is no label or no such entity.

    Raises:
        Unavailable: no answer after all retries.
    """
    labels: dict[str, str] = {}
    redirects: dict[str, str] = {}
    bodies = client.entities(ids, "info|labels") if ids else {}
    for asked in ids:
        entity = parse_entity({"entities": {asked: bodies.get(asked, {"id": asked, "missing": ""})}}, asked)
        labels[asked] = entity.label if isinstance(entity, EntityDocument) else ""
        if isinstance(entity, EntityDocument) and entity.id != asked:
            redirects[asked] = entity.id
    return labels, redirects


def to_records(
    difference: RevisionDifference, night: str, labels: Mapping[str, str], redirects: Mapping[str, str]
) -> list[UpdateRecord]:
    """The update records of one event; a value that only moved to its redirect's target changes nothing."""
    event = difference.event
    entity = difference.entity or EntityDocument(event.entity_id, "item")
    revision = event.rev_new or (entity.revision if difference.entity else None)
    received_at = event.happened_at or entity.modified or datetime.now(UTC)
    provenance = Provenance(received_at, difference.revision_old, revision, event.editor_class, event.patrolled, event.summary)
    records = []
    for change in difference.changes:
        if change.kinds == ("value",) and _target(change.old, redirects) == _target(change.new, redirects) is not None:
            continue
        # A deletion has no revision of its own: the event names it.
        name = (
            f"wd-{digest_of(event.event_key, change.statement_id.casefold())[:24]}"
            if revision is None
            else record_id_of(entity.id, change, revision)
        )
        raw = change_record(change, entity, name, night, provenance, labels)
        records.append(UpdateRecord(record_id=name, source=SOURCE, night=night, received_at=received_at, raw=raw))
    return records


def _target(side: object, redirects: Mapping[str, str]) -> str | None:
    value = getattr(getattr(side, "snak", None), "value", None)
    return redirects.get(value.id, value.id) if value is not None and value.type == "item" else None


def outcome_of(difference: RevisionDifference, records: int) -> EventOutcome:
    if difference.outcome == "changed" and not records:
        return EventOutcome(difference.event.event_key, "unchanged", "redirect_resolved")
    return EventOutcome(difference.event.event_key, difference.outcome, difference.reason or difference.event.why, records)
