"""Fill a warehouse from a Wikidata dump, or catch up from one dump to the next, in constant memory.

One dump is a first fill: what holds now in slots that the warehouse knows nothing about becomes facts. Two dumps are a
catch-up: their differences become update records of a night, which the night's rules then judge like any others.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from dataclasses import field as made
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from warehouse.database.connection import Warehouse
from warehouse.database.frames import utc
from warehouse.errors import Conflict, SourceError, UsageError
from warehouse.ingest.entity_tables import Aside, UnstatedProperty, labels_of, put_aliases, put_asides, put_unstated
from warehouse.night_names import check_name
from warehouse.nights.intake import receive
from warehouse.nights.order import free_night, is_judged, last_changed, register
from warehouse.records import Record, UpdateRecord
from warehouse.stream.pending import SOURCE
from warehouse.wikidata.dump_scratch import Scratch
from warehouse.wikidata.dumps import DumpLine, read_dump
from warehouse.wikidata.entities import (
    EntityDocument,
    Provenance,
    SetAside,
    Statement,
    change_record,
    current,
    diff_statements,
    parse_entity,
    record_id_of,
)
from warehouse.world.facts import fact_id

#: Opens the warehouse for one short piece of work.
Opener = Callable[[], AbstractContextManager[Warehouse]]
#: Told the file and the number of its bytes read so far.
Progress = Callable[[Path, int], None]
CHUNK = 5000
#: Facts of a fill are marked with it and the file's name. Records of a catch-up are the live source's, so that what the
#: stream has brought already is not received twice, and `errata refresh` runs their night.
DUMP = "dump"
_ITEMS = "wikibase-item"


class DumpReport(Record):
    """What came of one or two dumps; `bytes_read` of the files as they are, compressed ones.

    `skipped` counts statements or changes by the reason they gave no fact or record.
    """

    night: str
    entities: int
    bytes_read: int = 0
    unchanged: int = 0
    only_in_old: int = 0
    facts: int = 0
    records: int = 0
    aliases: int = 0
    set_aside: dict[str, int]
    left_out: dict[str, int]
    skipped: dict[str, int]
    unstated: tuple[UnstatedProperty, ...]


@dataclass
class _Counts:
    entities: int = 0
    num_bytes: int = 0
    unchanged: int = 0
    written: int = 0
    aliases: int = 0
    set_aside: Counter[str] = made(default_factory=Counter)
    left_out: Counter[str] = made(default_factory=Counter)
    skipped: Counter[str] = made(default_factory=Counter)
    unstated: Counter[str] = made(default_factory=Counter)


class _Work:
    """One ingest: the scratch file, the counts, and what was set aside until it is written."""

    def __init__(self, opener: Opener, night: str, stated: Collection[str], scratch: Scratch, source: str) -> None:
        self.opener, self.night, self.stated, self.scratch, self.source = opener, night, stated, scratch, source
        self.counts = _Counts()

    def items(
        self, path: Path, progress: Progress | None, *, is_counted: bool = True
    ) -> Iterator[tuple[DumpLine, EntityDocument]]:
        """The items of a dump, named in the scratch file; what is none is put aside with its reason.

        Raises:
            SourceError: the file is missing, of another format, ends in the middle, or no line of it is an entity.
        """
        done, num_lines, num_entities = 0, 0, 0

        def advance(num_bytes: int) -> None:
            nonlocal done
            done = num_bytes
            if progress is not None:
                progress(path, num_bytes)

        for line in read_dump(path, advance):
            entity = line.entity
            num_lines += 1
            num_entities += isinstance(entity, EntityDocument)
            if isinstance(entity, SetAside):
                self._aside(path, line, entity)
                continue
            self.scratch.name(entity)
            if entity.type == "property":
                continue
            if is_counted:
                self.counts.entities += 1
                self.counts.left_out.update(left.reason for left in entity.left_out)
            yield line, entity
        self.counts.num_bytes += path.stat().st_size
        # An older dump may be an empty array: then everything is new.
        if not num_entities and (num_lines or is_counted):
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.counts.set_aside.most_common()) or "the array is empty"
            raise SourceError(
                f"{path}: {done} bytes were read and no line of {num_lines} is an entity ({reasons}); nothing is kept. "
                "Expected a Wikidata JSON dump, one entity a line"
            )

    def _aside(self, path: Path, line: DumpLine, found: SetAside) -> None:
        self.counts.set_aside[found.reason] += 1
        # A lexeme is no broken line: there are a million of them, and they are counted.
        if found.reason != "unsupported_entity":
            raw = line.data[:2000].decode("utf-8", "backslashreplace")
            aside = Aside(
                place=f"{path.name}:{line.number}",
                entity_id=found.entity_id,
                reason=found.reason,
                sentence=found.sentence,
                raw=raw,
            )
            # Not yet into the warehouse: of a file that turns out to break off nothing is kept.
            self.scratch.put_aside(aside.model_dump_json())

    def flush(self) -> None:
        for bodies in self.scratch.asides(CHUNK):
            with self.opener() as wh:
                put_asides(wh, self.source, self.night, [Aside.model_validate_json(body) for body in bodies])

    def pieces(self) -> Iterator[tuple[list[dict[str, Any]], dict[str, str]]]:
        """What waits, with the labels of every id in it: those of the newer dump first, then the warehouse's."""
        for bodies in self.scratch.waiting(CHUNK):
            rows = [json.loads(body) for body in bodies]
            ids = {entity_id for row in rows for entity_id in row["ids"]}
            labels = self.scratch.labels(ids)
            with self.opener() as wh:
                labels = labels_of(wh, ids - labels.keys()) | labels
            yield rows, labels

    def alias(self, wh: Warehouse, ids: Collection[str]) -> None:
        self.counts.aliases += put_aliases(wh, self.scratch.aliases(ids))

    def report(self, **more: int) -> DumpReport:
        counts = self.counts
        names = self.scratch.labels(counts.unstated)
        self.flush()
        with self.opener() as wh:
            names = labels_of(wh, counts.unstated.keys() - names.keys()) | names
            put_unstated(wh, self.source, self.night, counts.unstated, names)
        listed = [UnstatedProperty(pid=pid, label=names.get(pid, ""), statements=n) for pid, n in counts.unstated.most_common()]
        return DumpReport(
            night=self.night,
            entities=counts.entities,
            bytes_read=counts.num_bytes,
            unchanged=counts.unchanged,
            aliases=counts.aliases,
            set_aside=dict(counts.set_aside),
            left_out=dict(counts.left_out),
            skipped=dict(counts.skipped),
            unstated=tuple(listed),
            **more,
        )


@contextmanager
def _work(opener: Opener, night: str, stated: Collection[str], folder: Path | None, source: str) -> Iterator[_Work]:
    with tempfile.TemporaryDirectory(prefix="errata-dump-", dir=folder) as name, Scratch(Path(name) / "scratch.sqlite") as db:
        yield _Work(opener, night, stated, db, source)


# ---------------------------------------------------------------- first fill


def fill(
    opener: Opener,
    path: Path,
    night: str,
    stated: Collection[str],
    *,
    now: datetime,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> DumpReport:
    """Put what a dump says to hold now into the warehouse, as facts believed from `night` on.

    Only slots (subject and property) that the warehouse holds nothing in are filled: a value that contradicts a held
    one has to come as an update record and be judged. A second call with the same file and night adds nothing.

    Args:
        opener: opens the warehouse; it is closed while the dump is read.
        path: the dump.
        night: name of the night; no later night may have changed facts.
        stated: the properties that have templates.
        now: the moment at which a fact must hold.
        folder: where the scratch file lies, up to about twice the size of the compressed dump.

    Raises:
        SourceError: no such file, another format, or a file that ends in the middle; nothing of it is kept.
        Conflict: a later night has changed facts already.
    """
    if not night:
        raise UsageError("a fill needs a named night; the empty name is the base world")
    check_name(night)
    with _work(opener, night, stated, folder, f"{DUMP}:{path.name}@{night}") as work:
        with opener() as wh:
            _check_last(wh, night)
        for _, entity in work.items(path, progress):
            _await_facts(work, entity, now)
        for rows, labels in work.pieces():
            with opener() as wh, wh.transaction():
                _put_facts(wh, work, rows, labels)
        return work.report(facts=work.counts.written)


def _check_last(wh: Warehouse, night: str) -> None:
    latest = last_changed(wh, night)
    if latest is not None:
        raise Conflict(
            f"night {latest} has changed facts already; a fill of night {night} cannot go behind it: give the fill a night "
            f"of its own, as in --night {free_night(wh, night)}"
        )
    register(wh, [night])


def _await_facts(work: _Work, entity: EntityDocument, now: datetime) -> None:
    met, _, _ = work.scratch.meet(entity.id)
    if met:
        work.counts.skipped["repeated_entity"] += 1
        return
    slots: dict[str, list[Statement]] = {}
    for statement in entity.statements:
        if statement.pid in work.stated:
            slots.setdefault(statement.pid, []).append(statement)
        elif statement.snak.datatype in (_ITEMS, "") and _is_item(statement):
            work.counts.unstated[statement.pid] += 1
    for pid, statements in slots.items():
        valid = current(tuple(statements), now)
        work.counts.skipped["not_current"] += len(statements) - len(valid)
        for statement in valid:
            if not _is_item(statement):
                work.counts.skipped["no_item"] += 1
            elif not entity.label:
                work.counts.skipped["no_english_label"] += 1
            else:
                work.scratch.wait(json.dumps(_fact(entity, pid, statement), ensure_ascii=False))


def _is_item(statement: Statement) -> bool:
    return statement.snak.value is not None and statement.snak.value.type == "item"


def _fact(entity: EntityDocument, pid: str, statement: Statement) -> dict[str, Any]:
    assert statement.snak.value is not None
    start, end = statement.valid_from, statement.valid_to
    return {
        "ids": [entity.id, statement.snak.value.id],
        "subject": entity.label,
        "relation": pid,
        "rank": statement.rank,
        "statement_id": statement.id,
        "revision": entity.revision,
        "valid_from": start and start.isoformat(),
        "valid_to": end and end.isoformat(),
    }


def _put_facts(wh: Warehouse, work: _Work, rows: Sequence[dict[str, Any]], labels: dict[str, str]) -> None:
    facts = []
    for row in rows:
        subject_id, object_id = row.pop("ids")
        if object_id not in labels:
            work.counts.skipped["value_without_label"] += 1
            continue
        times = {name: row[name] and utc(datetime.fromisoformat(row[name])) for name in ("valid_from", "valid_to")}
        fact = {
            **row,
            **times,
            "subject_id": subject_id,
            "object_id": object_id,
            "object": labels[object_id],
            "source": work.source,
            "known_from_night": work.night,
        }
        facts.append({**fact, "fact_id": fact_id(fact)})
    slots = pd.DataFrame([(f["subject_id"], f["relation"]) for f in facts], columns=["subject_id", "relation"], dtype="str")
    held = wh.rows(
        """SELECT DISTINCT subject_id, relation FROM facts SEMI JOIN slots USING (subject_id, relation)
           WHERE known_to_night IS NULL AND source <> $source""",
        {"source": work.source},
        slots=slots,
    )
    taken = {(row["subject_id"], row["relation"]) for row in held}
    fresh = [fact for fact in facts if (fact["subject_id"], fact["relation"]) not in taken]
    work.counts.skipped["slot_held"] += len(facts) - len(fresh)
    work.counts.written += wh.append("facts", fresh)
    work.alias(wh, {fact[name] for fact in fresh for name in ("subject_id", "object_id")})


# ---------------------------------------------------------------- catch-up


def catch_up(
    opener: Opener,
    old: Path,
    new: Path,
    night: str,
    stated: Collection[str],
    *,
    source: str = SOURCE,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> DumpReport:
    """Turn the differences between two dumps into update records of a night.

    An entity that only the newer dump has is new, with all its statements; one that only the older dump has is counted
    and left alone, since a slice may leave it out. Changes of references alone, and of statements that were deprecated
    and are, are counted and give no record. Records received already stay as they are.

    Raises:
        SourceError: a file is missing, of another format, or ends in the middle: what it lacks would count as gone, or as
            new. Nothing of either file is kept.
        Conflict: the night is judged already.
    """
    if not night:
        raise UsageError("a catch-up needs a named night for its records")
    check_name(night)
    if not new.is_file():
        # Said before the older dump is read, which takes hours where it is whole.
        raise SourceError(f"{new}: no such file; give a later Wikidata JSON dump")
    with opener() as wh:
        if is_judged(wh, night):
            raise Conflict(
                f"night {night} is judged already; give the differences another night, as in --night {free_night(wh, night)}"
            )
    with _work(opener, night, stated, folder, source) as work:
        for line, entity in work.items(old, progress, is_counted=False):
            work.scratch.keep(entity, line.data)
        # For a document that does not say when it was saved; of the file, so that a second call gives the same record.
        written_at = datetime.fromtimestamp(int(new.stat().st_mtime), UTC)
        for _, entity in work.items(new, progress):
            _await_changes(work, entity, entity.modified or written_at)
        for rows, labels in work.pieces():
            with opener() as wh:
                _receive(wh, work, rows, labels)
        return work.report(records=work.counts.written, only_in_old=work.scratch.unmet())


def _await_changes(work: _Work, entity: EntityDocument, received_at: datetime) -> None:
    met, revision, body = work.scratch.meet(entity.id)
    if met:
        work.counts.skipped["repeated_entity"] += 1
        return
    if revision is not None and revision == entity.revision:
        work.counts.unchanged += 1
        return
    before = None if body is None else parse_entity(body)
    assert not isinstance(before, SetAside), "only readable documents are kept"
    provenance = Provenance(received_at, revision, entity.revision, editor_class=DUMP)
    for change in diff_statements(before, entity):
        if change.pid not in work.stated:
            side = change.new or change.old
            if side is not None and _is_item(side):
                work.counts.unstated[change.pid] += 1
        elif change.kinds == ("references",):
            work.counts.skipped["references_only"] += 1
        elif not change.touches_belief:
            work.counts.skipped["deprecated"] += 1
        else:
            record_id = record_id_of(entity.id, change, entity.revision)
            values = [side.snak.value.id for side in (change.old, change.new) if side is not None and side.snak.value]
            raw = change_record(change, entity, record_id, work.night, provenance, {})
            work.scratch.wait(
                json.dumps(
                    {
                        "ids": [entity.id, change.pid, *filter(None, values)],
                        "record_id": record_id,
                        "received_at": received_at.isoformat(),
                        "raw": raw,
                    }
                )
            )


def _receive(wh: Warehouse, work: _Work, rows: Sequence[dict[str, Any]], labels: dict[str, str]) -> None:
    asked = pd.DataFrame({"record_id": [row["record_id"] for row in rows]}, dtype="str").assign(source=work.source)
    known = wh.rows("SELECT record_id FROM updates SEMI JOIN asked USING (source, record_id)", asked=asked)
    taken = {row["record_id"] for row in known}
    records = [
        UpdateRecord(
            record_id=row["record_id"],
            source=work.source,
            night=work.night,
            received_at=datetime.fromisoformat(row["received_at"]),
            raw=_labelled(row["raw"], labels),
        )
        for row in rows
        if row["record_id"] not in taken
    ]
    work.counts.skipped["received_before"] += len(rows) - len(records)
    work.counts.written += receive(wh, records)
    work.alias(wh, {row["ids"][0] for row in rows})


def _labelled(raw: str, labels: dict[str, str]) -> str:
    """The record with the labels that were not known yet when it was written."""
    record = json.loads(raw)
    for name in ("subject", "property", "old_value", "new_value"):
        part = record[name]
        if part is not None and "id" in part and not part.get("label"):
            part["label"] = labels.get(part["id"])
    return json.dumps(record, ensure_ascii=False)
