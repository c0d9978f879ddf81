"""Shape rules: what one record alone can be refused for, and the suite over the accepted ones."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd
import pytest

from checks.door.labels import label_problem
from checks.errors import ValidatorBroke
from checks.judging.expectations import SUITE_COLUMNS, run_request_suite
from checks.judging.requests import earliest, record_rows, shape_problem
from tests.checks.nights import NOW, change, item, judged, outcomes, request, small_store
from warehouse.nights.conflicts import RECORD_COLUMNS
from warehouse.reference.world import facts
from warehouse.world.changes import Value

PLACEHOLDERS = (
    "nan", "NaN", "N/A", "n/a", "n.a.", "#N/A", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#WERT!", "NULL", "null", "(null)",
    "<NA>", "NA", "NaT", "None", "-", "--", "\u2014", "...", "?", "???", "_", "TBD", "tbd.", "TBA",
    "to be determined", "unknown", "[object Object]", "\\N", "inf", "########", "Err:502", " nan ", "'nan'",
)  # fmt: skip
JUNK = (
    "asdasdasd", "sfgsfg", "asdkjh", "wqeoiu asdkjh", "jkl;", "blah blah", "zzzz", "<b>Oslo</b>", "&nbsp;", "[[Oslo]]",
    "javascript:alert(1)", "www.a.example", "SELECT * FROM x", "' OR 1=1 --", "=SUM(A1)", "../../etc/passwd",
    "M\ufffdnchen", "Ã¼ber", "visit my site", "Oslo \U0001f4a9", "test 123",
)  # fmt: skip


@pytest.mark.parametrize("label", [*PLACEHOLDERS, *JUNK])
def test_a_placeholder_or_junk_is_no_label_of_any_source(label: str) -> None:
    assert label_problem(label) == "malformed_label"


@pytest.mark.parametrize(
    "label",
    ["riot grrrl", "krautrock", "rhythm and blues", "oxygen", "xkcd", "couscous", "Duran Duran", "New York, New York", "LOL",
     "hip hop", "chow-chow", "Wiz Khalifa", "Sgt. Pepper's", "Brno", "Krk", "mp3", "iPhone", "deadmau5", "P!nk", "M*A*S*H",
     "R&B", "Nan Goldin", "Na", "Null Island", "Unknown Pleasures", "Testament", "The The", "Qwest", "Foo Fighters"],
)  # fmt: skip
def test_a_name_that_looks_odd_is_a_name(label: str) -> None:
    assert label_problem(label) is None


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ("", "empty_label"), ("  ", "empty_label"), ("null", "malformed_label"), ("qwer asdf", "malformed_label"),
        ("<i>hi</i>", "malformed_label"), ("see https://a.example/x", "malformed_label"),
        ("!!! ???", "malformed_label"),
        ("aaaaaaaaah", "malformed_label"), ('x"; DROP TABLE y;', "malformed_label"), ("a\u202eb", None),
        ("a\x00b", "malformed_label"), ("n" * 251, "malformed_label"), ("{{citation}}", None),
        ("\u041c\u0438\u043d\u0441\u043a", "no_english_label"), ("\u5927\u962a", "no_english_label"),
        ("Q64", "no_english_label"),
        ("Bern", None), ("1984", None), ("50 Cent", None), ("M\u00fcnchen", None), ("Ko\u0161ice", None),
        ("AC/DC", None),
        ("Knightsbridge", None), ("What's Going On (album)", None), ("U.S. Route 66", None), ("Google", None),
    ],
)  # fmt: skip
def test_labels_are_refused_for_what_they_are(label: str, problem: str | None) -> None:
    assert label_problem(label) == problem


def test_no_label_of_the_embedded_world_is_refused() -> None:
    labels = {f.subject for f in facts()} | {f.object for f in facts()}
    assert {label: label_problem(label) for label in labels if label_problem(label)} == {}


def test_time_of_year_precision_counts_from_its_first_day() -> None:
    assert earliest(["+2011-00-00T00:00:00Z", "-0044-03-15T00:00:00Z", "nonsense"]) == ((2011, 1, 1), (-44, 3, 15))


@pytest.mark.parametrize(
    ("new", "op", "reason"),
    [
        (Value(type="text", label="x"), "set_label", "not_a_statement"),
        (Value(type="string", label="Example.jpg"), "add_statement", "unsupported_datatype"),
        (Value(type="none", snaktype="somevalue"), "set_value", "no_value"),
        (None, "set_value", "no_value"),
        (item("Q1"), "set_value", "self_reference"),
        (item("Q99", ""), "set_value", "empty_label"),
        (item("Q3"), "set_value", None),
    ],
)
def test_a_change_is_refused_for_its_shape(new: Value | None, op: str, reason: str | None) -> None:
    assert shape_problem(change("r1", op, "Q1", "P19", "Q2", new)) == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"target": ""}, "empty_label"),
        ({"prompt": "Where was she born?"}, "prompt_without_subject"),
        ({"target": "anna berg"}, "self_reference"),
        ({"target": "x" * 4001}, "malformed_label"),
        ({"target": "\u5927\u962a"}, None),
        *(({"target": text}, "malformed_label") for text in PLACEHOLDERS),
        *(({"subject": text, "prompt": f"The home of {text} is"}, "malformed_label") for text in ("nan", "#N/A", "-", "TBD")),
        *(({"relation": text}, "malformed_label") for text in ("nan", "NULL", "-")),
        *(({"target": text}, "malformed_label") for text in JUNK),
        ({"target": "Q64"}, "no_english_label"),
        *(({"target": text}, None) for text in ("Na", "42", "\u20ac", "no", "true", "1984", "AC/DC", "#1 Record")),
        ({"target": "see https://a.example/x for what the board of the company has said"}, None),
        ({"target": "unknown", "kind": "erase"}, None),
    ],
)
def test_a_request_is_refused_for_its_shape(fields: dict[str, str], reason: str | None) -> None:
    assert shape_problem(request("u1", **fields)) == reason


def test_rows_have_the_columns_of_the_frame_in_order_of_arrival() -> None:
    later, sooner = (
        change("r2", "set_value", "Q1", "P19", "Q2", "Q3"),
        change("r1", "set_value", "Q9", "P19", "Q3", "Q4"),
    )
    frame = record_rows([("r2", later), ("r1", sooner)], NOW)
    assert list(frame.columns) == list(RECORD_COLUMNS)
    assert list(frame.record_id) == ["r1", "r2"]


def test_end_on_the_night_itself_is_past_and_start_on_it_is_not_future() -> None:
    times = {"P582": ("+2026-10-03T00:00:00Z",), "P580": ("+2026-10-03T00:00:00Z",)}
    row = record_rows([("r1", change("r1", "add_statement", "Q1", "P20", None, "Q3", qualifiers=times))], NOW).iloc[0]
    assert (bool(row.ends_past), bool(row.starts_future)) == (True, False)
    before = record_rows([("r1", change("r1", "add_statement", "Q1", "P20", None, "Q3", qualifiers=times))],
                         datetime(2026, 10, 2, 22, tzinfo=UTC)).iloc[0]  # fmt: skip
    assert (bool(before.ends_past), bool(before.starts_future)) == (False, True)


def _good_frame(*wrong: dict[str, object]) -> pd.DataFrame:
    """One good row, r0, then one row for each change of it, r1 and so on."""
    row = {"record_id": "r0", "subject_key": "Q1", "subject": "Anna Berg", "relation": "P19", "target_key": "Q3",
           "target": "Oslo", "kind": "modify", "is_request": 0, "relation_known": 1, "num_targets": 1,
           "num_verdicts": 1}  # fmt: skip
    rows = [row, *(row | {"record_id": f"r{i}"} | change for i, change in enumerate(wrong, start=1))]
    return pd.DataFrame([{name: 0 for name in SUITE_COLUMNS} | r for r in rows])


def test_the_suite_names_every_record_that_fails_under_its_column() -> None:
    wrong: list[dict[str, object]] = [
        {"target": None}, {"target": ""}, {"target": "a\u202eb"}, {"subject": None}, {"subject": "n" * 251},
        {"relation_known": 0}, {"self_reference": 1}, {"no_change": 1}, {"num_targets": 2}, {"num_verdicts": 2},
        {"contradicts": 1}, {"in_store": 1},
    ]  # fmt: skip
    report = run_request_suite(_good_frame(*wrong))
    found = {(record_id, r["column"]) for r in report["results"] for record_id in r["failing"]}
    assert found == {(f"r{i}", column) for i, row in enumerate(wrong, start=1) for column in row}
    assert not report["success"]


def test_the_suite_passes_good_rows_and_lets_an_erasure_have_no_target() -> None:
    assert run_request_suite(_good_frame())["success"]
    assert run_request_suite(_good_frame({"kind": "erase", "target": None, "target_key": None}))["success"]


def test_a_suite_that_could_not_be_computed_is_no_verdict_on_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from great_expectations import expectations as gxe

    broken = [gxe.ExpectColumnValuesToNotBeNull(column="nowhere")]
    monkeypatch.setattr("checks.judging.expectations._expectations", lambda: broken)
    with pytest.raises(ValidatorBroke, match="could not be computed"):
        run_request_suite(_good_frame())
    with pytest.raises(ValidatorBroke, match="lacks columns"):
        run_request_suite(_good_frame().drop(columns="target"))


def test_a_row_that_fails_an_expectation_is_held_back_under_its_name() -> None:
    def suite(frame: pd.DataFrame) -> dict[str, object]:
        failing = {"expectation": "expect_x", "column": "target", "success": False, "failing": ["r1"]}
        return {"success": False, "rows": len(frame), "results": [failing]}

    changes = [change("r1", "set_value", "Q1", "P19", "Q2", "Q3"), change("r2", "set_value", "Q9", "P19", "Q3", "Q4")]
    result = judged(small_store(), changes, suite=suite)
    assert outcomes(result) == {
        "r1": ("quarantine", "failed_expectation"), "r2": ("supersede", "newer_referenced_value")
    }  # fmt: skip
    assert result.verdicts[0].rule == "expect_x(target)"
    assert result.accepted_ids == ("r2",)
