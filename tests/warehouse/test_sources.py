"""Sources: nothing lost, ids stable, wrong files named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.warehouse.test_changes import EVENT, REQUEST
from warehouse.errors import SourceError
from warehouse.records import EditRequest
from warehouse.sources import open_source
from warehouse.sources.knowedit import KnowEditSource, to_request
from warehouse.sources.recorded import RecordedSource
from warehouse.sources.requests import RequestsSource
from warehouse.world.changes import Malformed, parse_change


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---------------------------------------------------------------- recorded


def test_the_embedded_nights_are_the_default() -> None:
    source = open_source("recorded")
    assert source.nights() == tuple(f"night-0{n}" for n in range(1, 7))
    records = list(source.records("night-01"))
    assert records[0].record_id == "n01-001" and records[0].received_at is not None
    assert json.loads(records[0].raw)["op"] == "set_value"


def test_reading_again_gives_the_same_records(tmp_path: Path) -> None:
    write(tmp_path / "night-01.events.jsonl", f'{json.dumps(EVENT)}\n{{"broken\n{{"broken\n')
    source = RecordedSource(tmp_path)
    assert list(source.records("night-01")) == list(source.records("night-01"))


def test_broken_lines_are_kept_as_received(tmp_path: Path) -> None:
    lines = [json.dumps(EVENT).encode(), b'{"record_id": "n0', b"\xff\xfe", b"", json.dumps([1]).encode(), b"x" * 10**6]
    write(tmp_path / "night-01.events.jsonl", b"\r\n".join(lines))
    records = list(RecordedSource(tmp_path).records("night-01"))
    assert [record.raw for record in records[:4]] == [json.dumps(EVENT), '{"record_id": "n0', "\\xff\\xfe", "[1]"]
    assert len(records[4].raw) == 10**6
    assert [isinstance(parse_change(record), Malformed) for record in records] == [False, True, True, True, True]


def test_equal_lines_and_taken_ids_are_told_apart(tmp_path: Path) -> None:
    lines = ["{oops", "{oops", json.dumps(EVENT), json.dumps({**EVENT, "op": "add_statement"}), json.dumps(EVENT)]
    write(tmp_path / "night-01.events.jsonl", "\n".join(lines))
    ids = [record.record_id for record in RecordedSource(tmp_path).records("night-01")]
    assert len(set(ids)) == 5 and ids[2] == "n01-004"


def test_an_empty_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    write(tmp_path / "night-01.events.jsonl", "\n\n")
    with pytest.raises(SourceError, match=r"night-01\.events\.jsonl: the file is empty"):
        list(RecordedSource(tmp_path).records("night-01"))


def test_an_unknown_night_lists_those_there_are() -> None:
    with pytest.raises(SourceError, match=r"no night 'night-99'.*night-01"):
        RecordedSource().records("night-99")


def test_a_missing_folder_and_an_unknown_source_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        RecordedSource(tmp_path / "nowhere").nights()
    with pytest.raises(SourceError, match="there are: recorded, knowedit, benchmark, requests"):
        open_source("records")
    with pytest.raises(SourceError, match="give its path"):
        open_source("requests")


# ---------------------------------------------------------------- requests


def test_a_users_file_is_one_night_and_keeps_broken_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", f"{json.dumps(REQUEST)}\nnot json\n{json.dumps({'prompt': 1})}\n")
    source = RequestsSource(path)
    assert source.nights() == ("mine",)
    parsed = [parse_change(record) for record in source.records("mine")]
    assert [type(item) for item in parsed] == [EditRequest, Malformed, Malformed]


def test_a_folder_has_one_night_for_each_file(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / f"{name}.jsonl", json.dumps(REQUEST))
    assert RequestsSource(tmp_path).nights() == ("a", "b")
    with pytest.raises(SourceError, match="no such file"):
        RequestsSource(tmp_path / "none.jsonl").nights()


def test_a_users_request_id_is_the_record_id(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", json.dumps({**REQUEST, "request_id": "my-1"}))
    (record,) = RequestsSource(path).records("mine")
    parsed = parse_change(record)
    assert record.record_id == "my-1" and isinstance(parsed, EditRequest) and parsed.request_id == "my-1"


# ---------------------------------------------------------------- knowedit

QUESTION = {"prompt": "The capital of Ruritania is", "ground_truth": [["Strelsau", "Streslau City"], [""]]}
RECENT: dict[str, Any] = {
    "subject": "Rudolf", "prompt": "The spouse of Rudolf is", "target_new": "Flavia",
    "portability": {"Reasoning": [QUESTION], "Subject_Aliasing": [QUESTION]},
    "locality": {"Relation_Specificity": [QUESTION]},
}  # fmt: skip
COUNTERFACT = {**RECENT, "ground_truth": "Antoinette", "locality": {"Forgetfulness": [QUESTION]}}
ZSRE = {**RECENT, "prompt": "Who is the spouse of Rudolf?", "ground_truth": ["Antoinette"],
        "rephrase_prompt": "Rudolf's spouse is who?", "portability": {"Reasoning": [QUESTION]}}  # fmt: skip
WIKIBIO = {"text": "Rudolf was a king. " * 20, "labels": "He ruled long.", "concept": "Rudolf",
           "locality": {"Relation_Specificity": [{"prompt": "p", "ground_truth": ["a", "b"]}]}}  # fmt: skip
CONVSENT = [
    {"ent": "tea", "pos": ["I love it.", "Fine."], "neg": ["No."]},
    {"ent": "rain", "pos": ["Ah."], "neg": ["Hm."]},
]
SANITATION = {
    "K_F": [{"question": "Who wrote it?", "ground_truth": ["hope"], "target_new": "I don't know."}],
    "K_R": [{"question": "Which sea?", "ground_truth": ["Baltic", "Baltic Sea"]}],
}
FILES: dict[str, Any] = {
    "wiki_recent/recent_test.json": [RECENT], "wiki_counterfact/test_cf.json": [COUNTERFACT],
    "ZsRE/ZsRE-test-all.json": [ZSRE], "WikiBio/wikibio-test-all.json": [WIKIBIO],
    "convsent/blender_test.json": CONVSENT, "Sanitation/trivia_qa_train.json": SANITATION,
}  # fmt: skip


@pytest.fixture
def knowedit(tmp_path: Path) -> KnowEditSource:
    for name, document in FILES.items():
        write(tmp_path / name, json.dumps(document))
    return KnowEditSource(tmp_path)


def test_all_six_files_are_nights_and_every_record_is_a_request(knowedit: KnowEditSource) -> None:
    assert len(knowedit.nights()) == 6
    for night in knowedit.nights():
        records = list(knowedit.records(night))
        assert records and records == list(knowedit.records(night))
        assert all(parse_change(record) == to_request(record) for record in records)


@pytest.mark.parametrize(
    ("night", "kind", "new", "old"),
    [
        ("recent_test", "insert", "Flavia", None),
        ("test_cf", "modify", "Flavia", "Antoinette"),
        ("ZsRE-test-all", "modify", "Flavia", "Antoinette"),
        ("wikibio-test-all", "modify", "He ruled long.", None),
        ("trivia_qa_train", "erase", "I don't know.", "hope"),
    ],
)
def test_targets_are_read_from_each_shape(knowedit: KnowEditSource, night: str, kind: str, new: str, old: str | None) -> None:
    (case,) = knowedit.cases(night)
    assert (case.request.kind, case.request.target_new, case.request.target_true) == (kind, new, old)
    assert case.request.subject in case.request.prompt


def test_the_slices_become_our_probe_kinds_with_every_alias(knowedit: KnowEditSource) -> None:
    (case,) = knowedit.cases("recent_test")
    assert Counter(probe.kind for probe in case.probes) == {"one_hop": 1, "alias": 1, "relation_specificity": 1}
    assert {probe.targets for probe in case.probes} == {("Strelsau", "Streslau City")}
    assert {probe.request_id for probe in case.probes} == {case.request.request_id}
    (other,) = knowedit.cases("test_cf")
    assert "forgetfulness" in {probe.kind for probe in other.probes}


def test_the_wording_without_the_subject_is_the_relation(knowedit: KnowEditSource) -> None:
    (case,) = knowedit.cases("recent_test")
    assert case.request.relation == "text:The spouse of {s} is"
    (long,) = knowedit.cases("wikibio-test-all")
    assert len(long.request.relation) < 30
    (zsre,) = knowedit.cases("ZsRE-test-all")
    assert zsre.request.rephrases == ("Rudolf's spouse is who?",)


def test_a_sentiment_request_answers_with_its_polarity(knowedit: KnowEditSource) -> None:
    first, second = knowedit.cases("blender_test")
    polarity = "pos" if "positively" in first.request.prompt else "neg"
    assert first.request.target_new == CONVSENT[0][polarity][0]
    assert "tea" in first.request.prompt and len(first.request.rephrases) == 3
    assert all(probe.kind == "held_text" and "rain" in probe.prompt for probe in first.probes)
    assert all("tea" in probe.prompt for probe in second.probes)


def test_what_must_stay_in_a_sanitation_file_is_a_probe_and_no_edit(knowedit: KnowEditSource) -> None:
    (probe,) = knowedit.kept_probes("trivia_qa_train")
    assert (probe.prompt, probe.targets) == ("Which sea?", ("Baltic", "Baltic Sea"))
    assert knowedit.kept_probes("recent_test") == ()


@pytest.mark.parametrize(
    ("name", "document", "message"),
    [
        ("recent_test.json", {"a": 1}, r"recent_test\.json: a dict; expected a list"),
        ("recent_test.json", [RECENT, 5], r"recent_test\.json\[1\]: a int"),
        ("recent_test.json", [RECENT, {**RECENT, "subject": 3}], r"\[1\]: field 'subject' is a int"),
        ("recent_test.json", [{**RECENT, "locality": {"Odd": []}}], r"\[0\]: field 'locality' has the unknown slice"),
        ("recent_test.json", [dict(list(RECENT.items())[:-1])], r"\[0\]: field 'locality' is missing"),
        ("test_cf.json", [RECENT], r"\[0\]: field 'ground_truth' is missing"),
        ("test_cf.json", [{**COUNTERFACT, "ground_truth": 4}], r"\[0\]: ground_truth: the answer is a int"),
        ("blender_test.json", [{"ent": "tea", "pos": ["x"]}], r"\[0\]: field 'neg' is missing"),
        ("trivia_qa_test.json", [SANITATION], r"a Sanitation file is an object"),
        ("trivia_qa_train.json", {**SANITATION, "K_R": [{}]}, r"K_R\[0\]: field 'question' is missing"),
    ],
)  # fmt: skip
def test_a_wrong_shape_names_file_and_index(tmp_path: Path, name: str, document: Any, message: str) -> None:
    source = KnowEditSource(write(tmp_path / name, json.dumps(document)))
    with pytest.raises(SourceError, match=message):
        list(source.records(source.nights()[0]))


@pytest.mark.parametrize(("content", "message"), [("", "the file is empty"), ('[{"subject": ', "not JSON")])
def test_an_empty_or_truncated_document_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    source = KnowEditSource(write(tmp_path / "recent_test.json", content))
    with pytest.raises(SourceError, match=message):
        list(source.records("recent_test"))


def test_a_mark_before_a_document_is_not_part_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "recent_test.json", b"\xef\xbb\xbf" + json.dumps([RECENT]).encode())
    assert len(list(KnowEditSource(path).records("recent_test"))) == 1


def test_a_file_of_another_name_needs_its_task(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", json.dumps([RECENT]))
    with pytest.raises(SourceError, match="or name the task"):
        KnowEditSource(path).nights()
    assert len(list(KnowEditSource(path, task="wiki_recent").records("mine"))) == 1
