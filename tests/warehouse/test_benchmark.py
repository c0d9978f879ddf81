"""Editing benchmarks in their published shapes. Every fact here is invented; only the fields are those of the files."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.warehouse.benchmark_rows import (
    FLAT,
    MQUAKE,
    QAEDIT,
    REMASTERED,
    SHAPES,
    SLICED,
    WIKIBIGEDIT,
    WIKIFACTDIFF,
    ZSRE,
    ripple_query,
)
from tests.warehouse.test_fuzz import mutants
from warehouse.database.connection import Warehouse
from warehouse.errors import SourceError
from warehouse.nights.intake import receive, record_verdicts
from warehouse.records import EditRequest, UpdateRecord, Verdict
from warehouse.sources import open_source
from warehouse.sources.benchmark import MAX_ROW_BYTES, BenchmarkSource, to_probes, to_request
from warehouse.world.changes import Malformed, parse_change
from warehouse.world.own_probes import own_probes


def written(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def read(path: Path, task: str = "") -> list[UpdateRecord]:
    source = BenchmarkSource(path, task)
    (night,) = source.nights()
    return list(source.records(night))


def reason(record: UpdateRecord) -> str:
    found = parse_change(record)
    assert isinstance(found, Malformed)
    return found.sentence


@pytest.mark.parametrize("name", SHAPES)
def test_each_published_shape_is_found_by_its_content(tmp_path: Path, name: str) -> None:
    row, source, (kind, new, old), num_rephrases, kinds = SHAPES[name]
    # Under a name that says nothing.
    record = read(written(tmp_path / "rows.json", [row]))[0]
    request = parse_change(record)
    assert isinstance(request, EditRequest) and record.source == f"benchmark:{source}"
    assert (request.kind, request.target_new, request.target_true) == (kind, new, old)
    assert request.subject in request.prompt and "{}" not in request.prompt and "____" not in request.prompt
    assert len(request.rephrases) == num_rephrases and not any("____" in one for one in request.rephrases)
    probes = to_probes(record)
    assert [probe.kind for probe in probes] == kinds
    assert {probe.request_id for probe in probes} <= {request.request_id} and all(probe.targets for probe in probes)


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_with_a_field_missing_is_a_verdict_that_names_it(tmp_path: Path, name: str) -> None:
    row = SHAPES[name][0]
    needed = {
        "zsre_mend_eval": "subject",
        "counterfact": "requested_rewrite.prompt",
        "counterfact-edit": "subject",
        "ZsRE-test-all": "subject",
        "MQuAKE-CF": "new_answer",
        "MQuAKE-Remastered": "questions",
        "RippleEdits": "edit.prompt",
        "WikiBigEdit": "subject",
        "WikiFactDiff": "subject",
        "QAEdit": "subject",
    }[name]
    broken = json.loads(json.dumps(row))
    *outer, last = needed.split(".")
    for part in outer:
        broken = broken[part]
    del broken[last]
    whole = json.loads(json.dumps(row)) | {outer[0]: broken} if outer else broken
    good, bad = (one for one in read(written(tmp_path / "rows.json", [REMASTERED if name == "MQuAKE-CF" else row, whole])))
    assert isinstance(parse_change(good), EditRequest)
    assert last in reason(bad)


def test_every_rewrite_of_a_multi_hop_case_is_an_edit_with_the_cases_questions(tmp_path: Path) -> None:
    first, second = (to_request(one) for one in read(written(tmp_path / "rows.json", [MQUAKE])))
    assert (first.prompt, first.relation, first.target_new_id) == ("Ada Quill is a citizen of", "P27", "Q11")
    assert (second.prompt, second.rephrases) == ("The capital of Norland is", ("What is the capital of Norland?",))
    hops = [probe for probe in to_probes(read(tmp_path / "rows.json")[1]) if probe.kind == "one_hop"]
    assert {probe.targets for probe in hops} == {("Eastholm", "East Holm")} and len(hops) == 2
    (kept,) = [probe for probe in to_probes(read(tmp_path / "rows.json")[0]) if probe.kind == "unrelated"]
    assert (kept.prompt, kept.targets) == ("Who heads Inkworks?", ("Ada Quill", "A. Quill"))


def test_a_setting_names_which_answer_of_zsre_is_the_target(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.json", [ZSRE])
    (by_default,), (as_rome) = read(path), [*open_source("benchmark", path, "zsre-answers").records("rows")]
    assert to_request(by_default).target_new == "Eastholm"
    assert (to_request(as_rome[0]).target_new, to_request(as_rome[0]).kind) == ("Westholm", "insert")
    with pytest.raises(SourceError, match=r"no benchmark format 'zsrre'; there are: zsre, zsre-answers"):
        open_source("benchmark", path, "zsrre")
    with pytest.raises(SourceError, match="no KnowEdit task"):
        open_source("knowedit", path, "zsre")
    with pytest.raises(SourceError, match="source 'requests' has no tasks"):
        open_source("requests", path, "zsre")


def test_a_sentence_of_ripple_edits_is_parted_with_and_without_a_fact_before(tmp_path: Path) -> None:
    def parted(prompt: str, before: str | None = None, **more: Any) -> tuple[str, str, str]:
        previous = {} if before is None else {"previous_fact": {"prompt": before}}
        row = {"edit": {"prompt": prompt, "target_id": "Q9", **previous}, **more}
        request = to_request(read(written(tmp_path / "r.json", [row]))[0])
        return request.prompt, request.subject, request.target_new

    known = [{"condition_queries": [ripple_query("Rex's film is", "Life is Grand", target_ids=["Q9"])]}]
    film = "The name of the director of The King of Nor is Life is Grand."
    assert parted(film, Compositionality_I=known)[1:] == ("The King of Nor", "Life is Grand")
    united = (
        "The name of the country which Lee is associated with is United Nor.",
        "The name of the country which Lee is associated with is United Sud.",
    )
    assert parted(*united) == ("The name of the country which Lee is associated with is", "Lee", "United Nor")
    assert parted("The number of children Ada Quill has is 3.")[1:] == ("Ada Quill", "3")
    assert parted("The names of the siblings of Ada Quill are Bo.")[1:] == ("Ada Quill", "Bo")
    assert parted("The Red Ledger is followed by The Blue One.") == (
        "The Red Ledger is followed by",
        "The Red Ledger",
        "The Blue One",
    )
    assert parted("The name of the award Ada Quill won is the Ink Cup.")[1] == "Ada Quill"


def test_new_alone_is_an_insertion_and_obsolete_alone_an_erasure(tmp_path: Path) -> None:
    new, old = WIKIFACTDIFF["objects"]
    rows = [
        {**WIKIFACTDIFF, "objects": [new]},
        {**WIKIFACTDIFF, "objects": [old]},
        {**WIKIFACTDIFF, "objects": [new, new, old]},
        {**WIKIFACTDIFF, "update_prompt": "____ employs Ada Quill"},
    ]
    insertion, erasure, several, early = read(written(tmp_path / "rows.json", rows))
    assert (to_request(insertion).kind, to_request(insertion).target_true) == ("insert", None)
    assert (to_request(erasure).kind, to_request(erasure).target_new, to_request(erasure).target_true) == (
        "erase",
        "unknown",
        "Penhouse",
    )
    assert "2 new and 1 obsolete" in reason(several) and "ends in a blank" in reason(early)
    assert to_probes(insertion)[0].targets == ("Millco", "Barnco")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (5, "the row is a int"),
        ("Ada", "the row is not JSON, or a bare text"),
        (None, "the row is a NoneType"),
        ({**ZSRE, "alt": ""}, "field 'alt' is blank"),
        ({**ZSRE, "loc_ans": None}, "'loc_ans' is missing"),
        ({**ZSRE, "subject": ["Ada", "Quill"]}, "'subject' has 2 entries"),
        (QAEDIT, "the fields of qaedit .*, not of zsre"),
        ({"a": 1}, "the fields of no known format"),
        ({**ZSRE, "src": {"x": 1}}, "'src' is a dict"),
        ({**ZSRE, "portability": {"Odd": []}}, "unknown slice 'Odd'"),
        ({**ZSRE, "rephrase": "x" * MAX_ROW_BYTES}, "the limit is"),
        ({**ZSRE, "subject": "\ud800"}, "no text that can be stored"),
    ],
)
def test_a_row_that_cannot_be_read_is_a_record_with_the_reason(tmp_path: Path, row: Any, said: str) -> None:
    records = read(written(tmp_path / "rows.json", [ZSRE, row, ZSRE, ZSRE]))
    assert len(records) == 4 and len({record.record_id for record in records}) == 4
    assert len([one for one in records if isinstance(parse_change(one), EditRequest)]) == 3
    with pytest.raises(SourceError, match=said):
        to_request(records[1])
    assert all(record.raw.isascii() for record in records)


@pytest.mark.parametrize(
    "name", ["lines.jsonl", "lines.JSON", "packed.json.gz", "viewer.json", "wrapped.json", "one.json", "marked.json"]
)
def test_rows_come_from_every_usual_container(tmp_path: Path, name: str) -> None:
    rows = [QAEDIT, {**QAEDIT, "subject": "Bo Reed"}]
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    data = {
        "lines.jsonl": lines,
        "lines.JSON": lines + b"\n",
        "packed.json.gz": gzip.compress(json.dumps(rows).encode()),
        "viewer.json": json.dumps(
            {"features": [], "rows": [{"row_idx": i, "row": row} for i, row in enumerate(rows)]}
        ).encode(),
        "wrapped.json": json.dumps({"version": 1, "data": rows}).encode(),
        "one.json": json.dumps(QAEDIT).encode(),
        "marked.json": b"\xef\xbb\xbf" + json.dumps(rows).encode(),
    }[name]
    (tmp_path / name).write_bytes(data)
    source = BenchmarkSource(tmp_path)
    (night,) = source.nights()
    assert night == name.partition(".")[0] and len(list(source.records(night))) == (1 if name == "one.json" else 2)


def test_parquet_rows_are_read_with_their_nested_fields(tmp_path: Path) -> None:
    rows, path = written(tmp_path / "rows.json", [REMASTERED]), tmp_path / "part-0.parquet"
    duckdb.sql(f"COPY (SELECT * FROM read_json('{rows}')) TO '{path}' (FORMAT parquet)")
    (record,) = read(path)
    assert to_request(record).target_new == "Norland" and len(to_probes(record)) == 2
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match="may be cut off"):
        read(path)


def test_a_broken_line_among_lines_is_a_verdict_and_a_missing_number_is_a_missing_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        f'{json.dumps(WIKIBIGEDIT)}\n{{"tag": \n{json.dumps({**WIKIBIGEDIT, "mhop": float("nan"), "mhop_ans": None})}\n'
    )
    whole, broken, partial = read(path)
    assert "not JSON" in reason(broken)
    assert [len(to_probes(one)) for one in (whole, partial)] == [3, 2]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"[]", "list of rows is empty"),
        (b'{"a": 1}', "without a list of rows"),
        (b'[{"a": 1}]', "no row has the fields"),
        (json.dumps([ZSRE]).encode()[:-9], "cut off"),
        (b"subject,prompt\nAda,x\n", "cut off|neither a JSON"),
        (b"[5]", "no row has"),
        (json.dumps([ZSRE]).encode("utf-16"), "UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (gzip.compress(json.dumps([ZSRE] * 50).encode())[:-9], "breaks off"),
        (b"[" * 100_000, "nested too deeply|cut off"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=rf"rows\.json: .*(?:{said})"):
        read(path)


def test_a_folder_names_what_is_there_and_refuses_two_files_of_one_night(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(SourceError, match=r"no benchmark file there .*found rows\.csv"):
        BenchmarkSource(tmp_path).nights()
    for name in ("b.json", "a.json", "a.jsonl"):
        written(tmp_path / name, [ZSRE])
    with pytest.raises(SourceError, match=r"night 'a' is a\.json already"):
        BenchmarkSource(tmp_path).nights()


def test_reading_again_gives_the_same_records_and_equal_rows_are_told_apart(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.json", [ZSRE, ZSRE, MQUAKE])
    assert read(path) == read(path) and len({record.record_id for record in read(path)}) == 3


def test_a_subject_is_spelled_as_the_prompt_spells_it(tmp_path: Path) -> None:
    record = read(written(tmp_path / "rows.json", [{**ZSRE, "src": "where was ada quill born?"}]))[0]
    assert to_request(record).subject == "ada quill"


@pytest.mark.parametrize("name", SHAPES)
def test_no_broken_row_raises_anything_else(tmp_path: Path, name: str) -> None:
    row, source, *_ = SHAPES[name]
    for seed in range(30):
        for one in mutants(row, random.Random(seed).randrange(1 << 30)):
            raw = json.dumps({"edit": 0, "row": one}, default=str)
            record = UpdateRecord(record_id="r", source=f"benchmark:{source}", night="n", received_at=None, raw=raw)
            assert isinstance(parse_change(record), EditRequest | Malformed)


def test_the_questions_of_a_nights_rows_are_asked_but_for_those_about_other_edits(tmp_path: Path) -> None:
    other = {
        **FLAT,
        "subject": "Bo Reed",
        "prompt": "The trade of Bo Reed is",
        "target_new": "miller",
        "ground_truth": "clerk",
        "rephrase_prompt": "Bo Reed works as a",
        "locality_prompt": "The trade of Cy Holt is",
        "locality_ground_truth": "smith",
    }
    records = read(written(tmp_path / "rows.json", [{**FLAT, "portability": SLICED["portability"]}, other]))
    requests = [to_request(record) for record in records]
    with Warehouse.open(":memory:") as wh:
        receive(wh, records)
        verdicts = [
            Verdict(record_id=record.record_id, verdict="accept", reason="r", rule="r", sentence="s", request_id=one.request_id)
            for record, one in zip(records, requests, strict=True)
        ]
        record_verdicts(wh, "rows", records[0].source, verdicts, requests)
        alone = own_probes(wh, requests[:1], requests[:1])
        both = own_probes(wh, requests, requests)
    assert sorted(probe.kind for probe in alone) == ["alias", "neighbourhood", "one_hop"]
    # Bo Reed is edited tonight: that he stays as he was is not asked.
    assert [probe.prompt for probe in both if probe.kind == "neighbourhood"] == ["The trade of Cy Holt is"]
