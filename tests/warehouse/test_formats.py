"""Files in a wrong format, under another name, or cut off: read, or refused by name; never an empty night."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.warehouse.documents import document, item, statement, write_dump
from tests.warehouse.test_changes import EVENT, REQUEST
from warehouse.database.connection import Warehouse
from warehouse.errors import SourceError
from warehouse.ingest.dump_ingest import catch_up, fill
from warehouse.records import EditRequest
from warehouse.sources.base import read_lines
from warehouse.sources.recorded import RecordedSource
from warehouse.sources.requests import RequestsSource
from warehouse.wikidata.dumps import BrokenDump, read_dump
from warehouse.wikidata.entities import EntityDocument
from warehouse.world.changes import Malformed, parse_change

STATED = ("P36",)
NOW = datetime(2026, 10, 1, tzinfo=UTC)
COUNTRIES = [document(f"Q{n}", statement(f"Q{n}$a", "P36", item("Q1490")), label=f"Land {n}") for n in range(20, 40)]
TOKYO = document("Q1490", label="Tokyo")


@pytest.fixture
def store() -> Iterator[Warehouse]:
    with Warehouse.open(":memory:") as wh:
        yield wh


def opener(store: Warehouse) -> Any:
    @contextmanager
    def opened() -> Iterator[Warehouse]:
        yield store

    return opened


def kept(store: Warehouse) -> list[int]:
    """Rows of everything that a fill or a catch-up writes."""
    tables = ("facts", "updates", "aliases", "set_aside")
    return [store.scalar(f"SELECT count(*) FROM {table}") for table in tables]


# ---------------------------------------------------------------- dumps that end in the middle


def cut_in_line(text: bytes) -> bytes:
    return text[: len(text) // 2]


def cut_behind_line(text: bytes) -> bytes:
    return text[: text.rindex(b"\n", 0, len(text) // 2) + 1]


def cut_before_the_end(text: bytes) -> bytes:
    return text.rstrip()[:-1]


CUTS = [cut_in_line, cut_behind_line, cut_before_the_end]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_cut_off_old_dump_invents_no_change(
    store: Warehouse, tmp_path: Path, cut: Callable[[bytes], bytes], pack: Callable[[bytes], bytes]
) -> None:
    new = write_dump(tmp_path / "new.json", TOKYO, *COUNTRIES)
    old = tmp_path / "old.json"
    old.write_bytes(pack(cut(new.read_bytes())))
    before = kept(store)
    with pytest.raises(BrokenDump, match=r"old\.json: line .* bytes and \d+ items were read and nothing of them is kept"):
        catch_up(opener(store), old, new, "2026-10-02", STATED, folder=tmp_path)
    assert kept(store) == before


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_off_new_dump_and_a_cut_off_fill_keep_nothing(
    store: Warehouse, tmp_path: Path, cut: Callable[[bytes], bytes]
) -> None:
    whole = write_dump(tmp_path / "whole.json", TOKYO, '{"id": "Q5"', *COUNTRIES)
    short = tmp_path / "short.json"
    short.write_bytes(cut(whole.read_bytes()))
    before = kept(store)
    with pytest.raises(BrokenDump):
        catch_up(opener(store), whole, short, "2026-10-02", STATED, folder=tmp_path)
    with pytest.raises(BrokenDump):
        fill(opener(store), short, "2026-10-01", STATED, now=NOW, folder=tmp_path)
    assert kept(store) == before


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_cut_off_archive_keeps_nothing(store: Warehouse, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    whole = write_dump(tmp_path / "whole.json", TOKYO, *COUNTRIES)
    short = tmp_path / "short.json"
    short.write_bytes(pack(whole.read_bytes())[:-9])
    before = kept(store)
    with pytest.raises(SourceError, match="breaks off or is damaged"):
        fill(opener(store), short, "2026-10-01", STATED, now=NOW, folder=tmp_path)
    assert kept(store) == before


def test_json_lines_cut_inside_the_last_line_break_off_and_a_missing_newline_does_not(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in (TOKYO, *COUNTRIES)))
    assert len(list(read_dump(path))) == 21
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BrokenDump, match="line 21: the file breaks off in the middle"):
        list(read_dump(path))


def test_a_slice_without_its_beginning_is_no_whole_dump(tmp_path: Path) -> None:
    path = write_dump(tmp_path / "d.json", TOKYO, *COUNTRIES)
    path.write_bytes(path.read_bytes().split(b"\n", 5)[-1])
    with pytest.raises(BrokenDump, match=r"own beginning is missing; \d+ bytes and 17 items"):
        list(read_dump(path))


def test_zeros_at_the_end_of_a_download_are_no_entities(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(f"{json.dumps(TOKYO)}\n".encode() + b"\x00" * 5000)
    with pytest.raises(BrokenDump, match="line 2: the file breaks off"):
        list(read_dump(path))


def test_two_slices_one_behind_the_other_are_whole(tmp_path: Path) -> None:
    path = write_dump(tmp_path / "d.json", TOKYO)
    path.write_bytes(path.read_bytes() + write_dump(tmp_path / "e.json", *COUNTRIES).read_bytes())
    assert len(list(read_dump(path))) == 21


def test_a_report_says_how_many_bytes_were_read(store: Warehouse, tmp_path: Path) -> None:
    path = write_dump(tmp_path / "d.json", TOKYO, *COUNTRIES)
    report = fill(opener(store), path, "2026-10-01", STATED, now=NOW, folder=tmp_path)
    assert (report.bytes_read, report.entities, report.facts) == (path.stat().st_size, 21, 20)


# ---------------------------------------------------------------- dumps in other formats

PRETTY = json.dumps([TOKYO, COUNTRIES[0]], indent=2)
ARRAY = f"{json.dumps(TOKYO)},\n{json.dumps(COUNTRIES[0])},\n]".encode()
LINES = f"{json.dumps(TOKYO)}\n{json.dumps(COUNTRIES[0])}\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + LINES.encode(), lzma.compress(LINES.encode()), json.dumps([TOKYO, COUNTRIES[0]]).encode(),
        f"[{json.dumps(TOKYO)},\n{json.dumps(COUNTRIES[0])}]".encode(), b"\xef\xbb\xbf[\n" + ARRAY,
        LINES.replace("\n", "\r\n").encode(), gzip.compress(b"\xef\xbb\xbf" + LINES.encode()),
    ],
    ids=["mark", "xz", "one line", "signs on the lines", "mark and array", "crlf", "packed mark"],
)  # fmt: skip
def test_other_spellings_of_a_dump_are_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "d.JSON"
    path.write_bytes(data)
    found = [line.entity for line in read_dump(path)]
    assert [entity.id for entity in found if isinstance(entity, EntityDocument)] == ["Q1490", "Q20"] and len(found) == 2


FOREIGN: dict[str, tuple[bytes, str]] = {
    "utf-16": (LINES.encode("utf-16"), "UTF-16"),
    "utf-16 without a mark": (LINES.encode("utf-16-le"), "UTF-16"),
    "utf-32": (LINES.encode("utf-32"), "UTF-32"),
    "zstandard": (b"\x28\xb5\x2f\xfd" + b"x" * 50, "Zstandard"),
    "zip": (b"PK\x03\x04" + b"x" * 50, "zip archive"),
    "parquet": (b"PAR1" + b"x" * 50, "Parquet"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
    "error page": (b"\n<!DOCTYPE html><title>404</title>", "HTML"),
    "csv": (b"id,label\nQ1490,Tokyo\n", "CSV"),
    "zeros": (b"\x00" * 600, "no text"),
    "empty": (b"", "empty"),
    "blank": (b"\n \n", "empty"),
    "text": (b"Not found\n", "no JSON"),
}  # fmt: skip
DUMP_ONLY: dict[str, tuple[bytes, str]] = {
    "pretty array": (PRETTY.encode(), "pretty-printed"),
    "pretty document": (json.dumps(TOKYO, indent=1).encode(), "pretty-printed"),
    "envelope": (json.dumps({"entities": {"Q1490": TOKYO, "Q20": COUNTRIES[0]}, "success": 1}).encode(), "answer of an API"),
    "api error": (b'{"error": {"code": "maxlag"}, "servedby": "mw1"}', "answer of an API"),
    "requests": (json.dumps(REQUEST).encode(), "answer of an API or another document"),
    "lexemes": (b'{"id": "L1"}\n{"id": "L2"}\n', "no line of 2 is an entity"),
    "empty array": (b"[\n]\n", "array is empty"),
    "broken lines": (b'{"id": "Q1490\n{"id": "Q20\n', "no line of 2 is an entity|breaks off"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FOREIGN, *DUMP_ONLY])
def test_a_dump_in_another_format_is_refused_by_name(store: Warehouse, tmp_path: Path, name: str) -> None:
    data, said = (FOREIGN | DUMP_ONLY)[name]
    path, whole = tmp_path / "d.json", write_dump(tmp_path / "whole.json", TOKYO)
    path.write_bytes(data)
    before = kept(store)
    with pytest.raises(SourceError, match=rf"d\.json: .*(?:{said})"):
        fill(opener(store), path, "2026-10-01", STATED, now=NOW, folder=tmp_path)
    with pytest.raises(SourceError, match=said):
        catch_up(opener(store), whole, path, "2026-10-01", STATED, folder=tmp_path)
    assert kept(store) == before


# ---------------------------------------------------------------- requests and recorded nights

TWO = f"{json.dumps(REQUEST)}\n{json.dumps(REQUEST | {'subject': 'Mars', 'prompt': 'The capital of Mars is'})}\n"


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.JSONL", "mine.ndjson", "mine.NDJSON", "mine.jsonl.gz"])
@pytest.mark.parametrize(
    "pack",
    [str.encode, lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: text.replace("\n", "\r\n").encode(),
     lambda text: gzip.compress(text.encode()), lambda text: lzma.compress(text.encode())],
    ids=["plain", "mark", "crlf", "gzip", "xz"],
)  # fmt: skip
def test_other_spellings_of_a_request_file_are_read(tmp_path: Path, name: str, pack: Callable[[str], bytes]) -> None:
    (tmp_path / name).write_bytes(pack(TWO))
    source = RequestsSource(tmp_path)
    (night,) = source.nights()
    assert RequestsSource(tmp_path / name).nights() == (night,) == ("mine",)
    assert [type(parse_change(one)) for one in source.records(night)] == [EditRequest, EditRequest]


@pytest.mark.parametrize("name", ["night-01.events.JSONL", "night-01.events.ndjson"])
def test_a_recorded_night_is_known_by_any_of_its_endings(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + json.dumps(EVENT).encode())
    source = RecordedSource(tmp_path)
    assert source.nights() == ("night-01",) and len(list(source.records("night-01"))) == 1


ARRAY_OF_REQUESTS = f"[\n{json.dumps(REQUEST)},\n{json.dumps(REQUEST)}\n]\n".encode()
LINES_ONLY: dict[str, tuple[bytes, str]] = {
    "pretty array": (json.dumps([REQUEST], indent=2).encode(), "one JSON array"),
    "array": (json.dumps([REQUEST, REQUEST]).encode(), "one JSON array"),
    "pretty object": (json.dumps(REQUEST, indent=2).encode(), "pretty-printed"),
    "array with its elements on lines": (ARRAY_OF_REQUESTS, "one JSON array"),
    "tsv": (b"prompt\tsubject\nThe capital of Japan is\tJapan\n", "tab-separated"),
    "semicolons": (b"prompt;subject\n", "semicolon-separated"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FOREIGN, *LINES_ONLY])
@pytest.mark.parametrize("source", ["requests", "recorded"])
def test_a_night_in_another_format_is_refused_by_name(tmp_path: Path, name: str, source: str) -> None:
    data, said = (FOREIGN | LINES_ONLY)[name]
    path = tmp_path / "night.events.jsonl"
    path.write_bytes(data)
    records = RequestsSource(path).records("night.events")
    if source == "recorded":
        records = RecordedSource(tmp_path).records("night")
    with pytest.raises(SourceError, match=rf"night\.events\.jsonl: .*{said}"):
        list(records)


@pytest.mark.parametrize("first", ["{", "[", "[1]", '[{"a": 1}]', "null", "prompt,subject", "{oops", "\x00", "<p>"])
def test_a_broken_first_record_is_one_record_and_the_night_is_read(tmp_path: Path, first: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{first}\n{TWO}")
    found = [type(parse_change(one)) for one in RequestsSource(path).records("mine")]
    assert found == [Malformed, EditRequest, EditRequest]


def test_a_cut_off_archive_of_requests_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl.gz"
    path.write_bytes(gzip.compress(TWO.encode() * 500)[:-9])
    with pytest.raises(SourceError, match="breaks off or is damaged"):
        list(read_lines(path))


def test_a_folder_without_a_night_names_what_is_there_and_an_empty_one_has_none(tmp_path: Path) -> None:
    assert RequestsSource(tmp_path).nights() == RecordedSource(tmp_path).nights() == ()
    (tmp_path / "updates.csv").write_text("prompt,subject\n")
    for source in (RequestsSource(tmp_path), RecordedSource(tmp_path)):
        with pytest.raises(SourceError, match=r"by its name .*found updates\.csv"):
            source.nights()


def test_two_files_of_one_night_are_refused(tmp_path: Path) -> None:
    for name in ("mine.jsonl", "mine.ndjson"):
        (tmp_path / name).write_text(TWO)
    with pytest.raises(SourceError, match=r"night 'mine' is mine\.jsonl already"):
        RequestsSource(tmp_path).nights()
