"""Dumps: read line by line, filled from, compared."""

from __future__ import annotations

import bz2
import gzip
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.warehouse.documents import document, item, statement, when, write_dump
from warehouse.database.connection import Warehouse
from warehouse.errors import Conflict, SourceError
from warehouse.ingest.dump_ingest import DumpReport, catch_up, fill
from warehouse.ingest.entity_tables import put_unstated, unstated
from warehouse.nights.intake import record_verdicts, updates_of
from warehouse.nights.order import register
from warehouse.records import Fact, Verdict
from warehouse.wikidata.dumps import BrokenDump, read_dump
from warehouse.wikidata.entities import EntityDocument
from warehouse.world.changes import Change, parse_change
from warehouse.world.facts import apply_fact_changes

NOW = datetime(2026, 10, 1, tzinfo=UTC)
STATED = ("P36", "P35")
TOKYO, KYOTO = document("Q1490", label="Tokyo"), document("Q34600", label="Kyoto")


def japan(*statements: dict[str, Any], **more: Any) -> dict[str, Any]:
    return document("Q17", *statements, **{"label": "Japan", "aliases": {"en": [{"language": "en", "value": "Nippon"}]}} | more)


def capital(qid: str = "Q1490", **more: Any) -> dict[str, Any]:
    return statement("Q17$a", "P36", item(qid), **more)


@pytest.fixture
def store() -> Iterator[Warehouse]:
    with Warehouse.open(":memory:") as wh:
        yield wh


def filled(store: Warehouse, path: Path, night: str = "2026-10-01") -> DumpReport:
    return fill(_opener(store), path, night, STATED, now=NOW, folder=path.parent)


def caught_up(store: Warehouse, old: Path, new: Path, night: str = "2026-10-02") -> DumpReport:
    return catch_up(_opener(store), old, new, night, STATED, folder=new.parent)


def _opener(store: Warehouse) -> Any:
    @contextmanager
    def opened() -> Iterator[Warehouse]:
        yield store

    return opened


def triples(store: Warehouse) -> list[tuple[str, str, str]]:
    rows = store.rows("SELECT subject, relation, object FROM facts WHERE known_to_night IS NULL ORDER BY ALL")
    return [tuple(row.values()) for row in rows]  # type: ignore[misc]


def changes(store: Warehouse, night: str = "2026-10-02") -> list[Change]:
    found = [parse_change(record) for record in updates_of(store, night)]
    assert all(isinstance(change, Change) for change in found), found
    return found  # type: ignore[return-value]


# ---------------------------------------------------------------- reading


def test_the_array_around_the_entities_and_its_commas_are_no_lines(tmp_path: Path) -> None:
    found = list(read_dump(write_dump(tmp_path / "d.json", TOKYO, KYOTO)))
    assert [(line.number, line.entity.id) for line in found if isinstance(line.entity, EntityDocument)] == [
        (2, "Q1490"),
        (3, "Q34600"),
    ]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_compression_is_known_by_the_content(tmp_path: Path, compress: Any) -> None:
    plain = write_dump(tmp_path / "d.json", TOKYO, KYOTO)
    packed = tmp_path / "without-suffix"
    packed.write_bytes(compress(plain.read_bytes()))
    assert [line.entity for line in read_dump(packed)] == [line.entity for line in read_dump(plain)]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_a_file_that_breaks_off_gives_what_came_before_and_says_so(tmp_path: Path, compress: Any) -> None:
    packed = tmp_path / "cut"
    # Two members: the first is whole, the second is cut.
    whole, rest = json.dumps(TOKYO).encode() + b"\n", json.dumps(KYOTO).encode() + b"\n"
    packed.write_bytes(compress(whole) + compress(rest)[:-12])
    lines, entities = read_dump(packed), []
    with pytest.raises(BrokenDump, match=rf"breaks off or is damaged.*{packed.stat().st_size} bytes and 1 items were read"):
        for line in lines:
            entities.append(line.entity)
    assert [entity.id for entity in entities if isinstance(entity, EntityDocument)] == ["Q1490"]


def test_a_line_longer_than_the_limit_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warehouse.wikidata.dumps.MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr("warehouse.wikidata.dumps._PIECE", 64)
    path = write_dump(tmp_path / "d.json", TOKYO, json.dumps(document("Q2", label="x" * 2000)), KYOTO)
    found = [line.entity for line in read_dump(path)]
    assert [getattr(e, "reason", "") for e in found] == ["", "too_large", ""]


def test_a_missing_dump_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        next(read_dump(tmp_path / "none.json"))


def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    def peak(num_lines: int) -> int:
        path = tmp_path / f"{num_lines}.json.gz"
        with gzip.open(path, "wt") as handle:
            for i in range(1, num_lines + 1):
                handle.write(json.dumps(document(f"Q{i}", statement(f"Q{i}$a", "P36", item("Q1")), label="x" * 200)) + ",\n")
        tracemalloc.start()
        count = sum(1 for _ in read_dump(path))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == num_lines
        return used

    peak(10)  # what is imported and cached once
    assert peak(3000) < peak(300) + 200_000


# ---------------------------------------------------------------- first fill


def test_a_fill_believes_what_holds_now_with_labels_of_the_dump(store: Warehouse, tmp_path: Path) -> None:
    ended = statement("Q17$b", "P36", item("Q34600"), rank="preferred", qualifiers={"P582": when("+1869-01-01T00:00:00Z")})
    report = filled(store, write_dump(tmp_path / "d.json", japan(capital(), ended), TOKYO, KYOTO))
    assert triples(store) == [("Japan", "P36", "Tokyo")]
    assert (report.facts, report.entities, report.skipped["not_current"]) == (1, 3, 1)


def test_a_fact_keeps_statement_revision_rank_and_time(store: Warehouse, tmp_path: Path) -> None:
    row = capital(rank="preferred", qualifiers={"P580": when("+1868-09-03T00:00:00Z")})
    filled(store, write_dump(tmp_path / "d.json", japan(row), TOKYO))
    (fact,) = store.rows('SELECT statement_id, revision, "rank", valid_from, known_from_night FROM facts')
    assert tuple(fact.values()) == ("Q17$a", 10, "preferred", datetime(1868, 9, 3, tzinfo=UTC), "2026-10-01")


def test_aliases_of_filled_items_are_kept(store: Warehouse, tmp_path: Path) -> None:
    filled(store, write_dump(tmp_path / "d.json", japan(capital()), TOKYO))
    assert store.rows("SELECT * FROM aliases") == [{"entity_id": "Q17", "alias": "Nippon"}]


def test_a_property_without_templates_is_counted_with_its_label(store: Warehouse, tmp_path: Path) -> None:
    path = write_dump(tmp_path / "d.json", japan(statement("Q17$x", "P47", item("Q2"))), document("P47", label="borders"))
    report = filled(store, path)
    assert triples(store) == [] and [(p.pid, p.label, p.statements) for p in report.unstated] == [("P47", "borders", 1)]
    assert unstated(store) == list(report.unstated)


def test_a_value_without_a_label_and_an_item_without_one_are_counted(store: Warehouse, tmp_path: Path) -> None:
    unnamed = document("Q5", statement("Q5$a", "P36", item("Q1490")))
    report = filled(store, write_dump(tmp_path / "d.json", japan(capital("Q99")), unnamed, TOKYO))
    assert (report.skipped["value_without_label"], report.skipped["no_english_label"], report.facts) == (1, 1, 0)


def test_a_slot_that_the_store_holds_is_left_to_the_nights(store: Warehouse, tmp_path: Path) -> None:
    held = Fact(subject_id="Q17", subject="Japan", relation="P36", object_id="Q34600", object="Kyoto", source="test")
    apply_fact_changes(store, "2026-09-01", [held])
    report = filled(store, write_dump(tmp_path / "d.json", japan(capital()), TOKYO))
    assert triples(store) == [("Japan", "P36", "Kyoto")] and report.skipped["slot_held"] == 1


def test_filling_again_adds_nothing(store: Warehouse, tmp_path: Path) -> None:
    path = write_dump(tmp_path / "d.json", japan(capital()), TOKYO)
    assert [filled(store, path).facts, filled(store, path).facts, filled(store, path, "2026-10-05").facts] == [1, 0, 0]


def test_a_fill_cannot_go_behind_a_later_night(store: Warehouse, tmp_path: Path) -> None:
    path = write_dump(tmp_path / "d.json", japan(capital()), TOKYO)
    register(store, ["2026-10-01"])
    filled(store, path, "2026-10-05")
    with pytest.raises(Conflict, match=r"2026-10-05 has changed facts already.* --night 2026-10-01-02"):
        filled(store, path, "2026-10-01")
    assert filled(store, path, "2026-10-01-02").facts == 0


def test_broken_lines_are_kept_with_a_reason(store: Warehouse, tmp_path: Path) -> None:
    report = filled(store, write_dump(tmp_path / "d.json", '{"id": "Q5"', TOKYO, '{"id": "L1"}'))
    (row,) = store.rows("SELECT place, reason, raw FROM set_aside")
    assert (row["place"], row["reason"], row["raw"]) == ("d.json:2", "undecodable", '{"id": "Q5"')
    assert report.set_aside == {"undecodable": 1, "unsupported_entity": 1}


# ---------------------------------------------------------------- catch-up


def two(tmp_path: Path, old: list[Any], new: list[Any]) -> tuple[Path, Path]:
    return write_dump(tmp_path / "old.json", *old), write_dump(tmp_path / "new.json", *new)


def test_differences_become_update_records_of_the_night(store: Warehouse, tmp_path: Path) -> None:
    pair = two(tmp_path, [japan(capital("Q34600")), KYOTO], [japan(capital(), lastrevid=11), TOKYO])
    report = caught_up(store, *pair)
    (change,) = changes(store)
    assert change.old is not None and change.new is not None and report.records == 1
    assert (change.op, change.old.label, change.new.label, change.subject.label) == ("set_value", "Kyoto", "Tokyo", "Japan")
    assert (change.revision_old, change.revision_new, change.received_at) == (10, 11, datetime(2026, 10, 1, 20, tzinfo=UTC))


def test_an_entity_at_the_same_revision_is_not_compared(store: Warehouse, tmp_path: Path) -> None:
    report = caught_up(store, *two(tmp_path, [japan(capital("Q34600"))], [japan(capital())]))
    assert (report.records, report.unchanged) == (0, 1)


def test_a_new_entity_brings_all_its_statements(store: Warehouse, tmp_path: Path) -> None:
    caught_up(store, *two(tmp_path, [TOKYO], [TOKYO, japan(capital())]))
    assert [change.op for change in changes(store)] == ["add_statement"]


def test_an_entity_that_is_only_in_the_older_dump_is_left_alone(store: Warehouse, tmp_path: Path) -> None:
    report = caught_up(store, *two(tmp_path, [japan(capital()), TOKYO], [TOKYO]))
    assert (report.records, report.only_in_old) == (0, 1)


def test_labels_that_no_dump_has_come_from_the_warehouse(store: Warehouse, tmp_path: Path) -> None:
    held = Fact(subject_id="Q1", subject="Honshu", relation="P36", object_id="Q1490", object="Tokyo", source="test")
    apply_fact_changes(store, "2026-09-01", [held])
    caught_up(store, *two(tmp_path, [], [japan(capital())]))
    (change,) = changes(store)
    assert change.new is not None and change.new.label == "Tokyo"


def test_catching_up_again_adds_nothing_even_when_a_label_came_meanwhile(store: Warehouse, tmp_path: Path) -> None:
    pair = two(tmp_path, [], [japan(capital())])
    assert caught_up(store, *pair).records == 1
    held = Fact(subject_id="Q1", subject="Honshu", relation="P36", object_id="Q1490", object="Tokyo", source="test")
    apply_fact_changes(store, "2026-09-01", [held])
    assert caught_up(store, *pair).records == 0


def test_references_alone_deprecated_statements_and_unstated_properties_give_no_record(
    store: Warehouse, tmp_path: Path
) -> None:
    wrong = statement("Q17$w", "P35", item("Q1"), rank="deprecated")
    other = statement("Q17$x", "P47", item("Q2"))
    new = japan(capital(references=[{"hash": "ab"}]), wrong, other, lastrevid=11)
    report = caught_up(store, *two(tmp_path, [japan(capital())], [new]))
    assert (report.records, report.skipped["references_only"], report.skipped["deprecated"]) == (0, 1, 1)
    assert [p.pid for p in report.unstated] == ["P47"]


def test_an_entity_twice_in_one_dump_counts_once(store: Warehouse, tmp_path: Path) -> None:
    report = caught_up(store, *two(tmp_path, [], [japan(capital()), japan(capital())]))
    assert (report.records, report.skipped["repeated_entity"]) == (1, 1)


def test_a_night_that_is_judged_takes_no_more_records(store: Warehouse, tmp_path: Path) -> None:
    pair = two(tmp_path, [], [japan(capital())])
    caught_up(store, *pair)
    (record,) = updates_of(store, "2026-10-02")
    verdict = Verdict(record_id=record.record_id, verdict="reject", reason="r", rule="r", sentence="s")
    record_verdicts(store, "2026-10-02", record.source, [verdict], [])
    with pytest.raises(Conflict, match="is judged already"):
        caught_up(store, *pair)


def test_properties_of_dumps_and_of_the_stream_are_listed_together_until_they_have_a_template(store: Warehouse) -> None:
    put_unstated(store, "dump:a", "n1", {"P47": 2, "P50": 9}, {"P47": "borders"})
    store.append("stream_counts", [{"stream": "s", "night": "n1", "kind": "property", "reason": "P47", "num": 3}])
    store.append("templates", [{"relation": "P50", "idx": 0, "prompt": "{s} is by", "phrase": "is by"}])
    assert [(p.pid, p.label, p.statements) for p in unstated(store, "n1")] == [("P47", "borders", 5)]
