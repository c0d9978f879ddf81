"""Pairs of edits of the four kinds of conflict, judged in one night and a night apart."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from checks.judging.verdicts import validate_night
from checks.scoring.conflicts import ConflictFileError, is_recognised, judge_cases, read_cases, score_conflicts, unusable
from checks.scoring.nights import fill_properties
from tests.checks.nights import NOW, no_suite
from warehouse.database.connection import Warehouse
from warehouse.records import EditRequest
from warehouse.world.facts import apply_fact_changes, record_verdicts

Triple = tuple[str, str, str]
LABELS = {"P22": "father", "P25": "mother", "P26": "spouse", "P40": "child", "P69": "educated at", "P184": "advisor",
          "P185": "student", "P155": "follows", "P156": "followed by"}  # fmt: skip


def entity(name: str) -> dict[str, str]:
    return {"id": f"Q{name}", "label": f"Name {name}"}


def case(case_id: str, kind: str, facts: list[Triple], *edits: tuple[str, str, str, str], **expected: Any) -> dict[str, Any]:
    return {
        "case_id": case_id, "kind": kind, "rule": {"id": f"{kind}-rule"},
        "facts": [{"subject": entity(s), "property": {"id": p, "label": LABELS[p]}, "object": entity(o)} for s, p, o in facts],
        "edits": [{"subject": entity(s), "property": {"id": p, "label": LABELS[p]}, "old_object": entity(old),
                   "new_object": entity(new)} for s, p, old, new in edits],
        "expected": {"strength": "hard", **expected},
    }  # fmt: skip


CASES = [
    case("rev-1", "reverse", [("1", "P22", "2"), ("2", "P40", "1")], ("1", "P22", "2", "3"), ("3", "P40", "1", "4")),
    case("rev-2", "reverse", [("1", "P185", "2"), ("2", "P184", "1")], ("1", "P185", "2", "3"), ("3", "P184", "1", "4"),
         strength="soft"),
    case("rev-3", "reverse", [("1", "P155", "2"), ("2", "P156", "1")], ("1", "P155", "2", "3"), ("3", "P156", "1", "4")),
    case("com-1", "composite", [("1", "P22", "2"), ("2", "P26", "3"), ("1", "P25", "3")],
         ("2", "P26", "3", "4"), ("1", "P25", "3", "5")),
    case("cov-1", "coverage", [("1", "P22", "2")], ("1", "P22", "2", "3"), ("1", "P22", "3", "4"),
         must_not_survive=["Q2", "Q3"]),
    case("rou-1", "round", [("1", "P69", "2"), ("1", "P69", "3")], ("1", "P69", "2", "4"), ("1", "P69", "4", "2"),
         must_survive=["Q2", "Q3"], must_not_survive=["Q4"]),
    case("rou-2", "round", [("1", "P22", "2"), ("1", "P22", "3")], ("1", "P22", "2", "4"), ("1", "P22", "4", "2"),
         must_survive=["Q2", "Q3"], must_not_survive=["Q4"]),
]  # fmt: skip
#: Pairs that look like the ones above and do not disagree.
PEACEFUL = [
    case("ok-1", "reverse", [("1", "P22", "2"), ("2", "P40", "1")], ("1", "P22", "2", "3"), ("3", "P40", "9", "1")),
    case("ok-2", "composite", [("1", "P22", "2"), ("2", "P26", "3"), ("1", "P25", "3")],
         ("2", "P26", "3", "4"), ("1", "P25", "3", "4")),
    case("ok-3", "composite", [("1", "P22", "8"), ("2", "P26", "3"), ("1", "P25", "3")],
         ("2", "P26", "3", "4"), ("1", "P25", "3", "5")),
]  # fmt: skip


@pytest.fixture(scope="module")
def judged() -> dict[str, Any]:
    return {mode: judge_cases(CASES + PEACEFUL, mode, no_suite) for mode in ("same_night", "later_night")}


@pytest.mark.parametrize("mode", ["same_night", "later_night"])
@pytest.mark.parametrize("one", CASES, ids=lambda one: one["case_id"])
def test_a_conflict_is_recognised(judged: dict[str, Any], mode: str, one: dict[str, Any]) -> None:
    assert is_recognised(one, mode, judged[mode][one["case_id"]])


@pytest.mark.parametrize("mode", ["same_night", "later_night"])
@pytest.mark.parametrize("one", PEACEFUL, ids=lambda one: one["case_id"])
def test_a_pair_that_agrees_is_let_through(judged: dict[str, Any], mode: str, one: dict[str, Any]) -> None:
    first, second, _ = judged[mode][one["case_id"]]
    assert {first.verdict, second.verdict} <= {"supersede", "accept"}


def test_the_ledger_of_past_edits_is_what_makes_the_second_night_a_conflict(judged: dict[str, Any]) -> None:
    _, second, _ = judged["later_night"]["rev-1"]
    assert second.reason == "inverse_conflict" and "the store" in second.sentence and second.confidence == "hard"
    assert judged["later_night"]["rev-2"][1].confidence == "soft"


def test_a_score_counts_by_kind_and_lists_what_it_missed(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl.gz"
    degenerate = case("com-2", "composite", [("1", "P22", "2")], ("1", "P22", "2", "2"), ("1", "P25", "3", "5"))
    # A composite that no rule knows: missed, and said so.
    unknown = case("com-3", "composite", [("1", "P69", "2")], ("2", "P69", "3", "4"), ("1", "P184", "3", "5"), strength="soft")
    path.write_bytes(gzip.compress("\n".join(json.dumps(c) for c in [*CASES, degenerate, unknown]).encode()))
    score = score_conflicts(path, suite=no_suite)
    assert (score["cases"], score["hard"], score["round"]) == (8, 1.0, 1.0)
    assert score["set_aside"] == {"com-2": "no_change"}
    assert score["recall"]["composite"]["soft"] == {"n": 1, "same_night": 0.0, "later_night": 0.0, "both": 0.0}
    assert [row["case_id"] for row in score["missed"]] == ["com-3"]
    assert score["false_alarms"]["rate"] == 0.0 and score["false_alarms"]["n"] == 182
    assert json.loads(json.dumps(score, allow_nan=False)) == score


def test_an_edit_without_a_readable_name_is_set_aside() -> None:
    one = case("rou-9", "round", [("1", "P69", "2")], ("1", "P69", "2", "4"), ("1", "P69", "4", "2"))
    assert unusable(one) is None
    one["edits"][0]["new_object"]["label"] = "\u0422\u043e"
    assert unusable(one) == "no_english_label"


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "no case"), ("{}", "line 1"), ("[1]", "line 1"), ('{"case_id": "a", "kind": "odd", "edits": [1, 2]}', "line 1")],
)
def test_a_file_that_holds_no_cases_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(text)
    with pytest.raises(ConflictFileError, match=says):
        read_cases(path)


def test_a_file_that_is_not_there_or_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConflictFileError, match="no such file"):
        read_cases(tmp_path / "none.jsonl")
    path = tmp_path / "cases.jsonl"
    path.write_text("\n".join(json.dumps(CASES[0]) for _ in range(2)))
    with pytest.raises(ConflictFileError, match="twice"):
        read_cases(path)


# ---------------------------------------------------------------- the same conflicts as a user's requests


def asked(request_id: str, relation: str, subject: str, old: str | None, new: str, *, ids: bool = True) -> EditRequest:
    return EditRequest(
        request_id=request_id, prompt=f"{relation} of Name {subject} is", subject=f"Name {subject}", relation=relation,
        target_new=f"Name {new}", target_true=None if old is None else f"Name {old}",
        subject_id=f"Q{subject}" if ids else "", target_new_id=f"Q{new}" if ids else "",
    )  # fmt: skip


def two_nights(first: EditRequest, second: EditRequest) -> list[str]:
    reasons = []
    with Warehouse.open(":memory:") as store:
        fill_properties(store)
        for number, one in enumerate((first, second), 1):
            night = f"night-{number:02}"
            result = validate_night(store, night, [one], NOW, suite=no_suite)
            reasons.append(result.verdicts[0].reason)
            store.append("updates", [{"source": "file", "record_id": one.request_id, "night": night, "received_at": None,
                                      "raw": "{}", "received_seq": number}])  # fmt: skip
            record_verdicts(store, night, "file", result.verdicts, [one])
            apply_fact_changes(store, night, result.added_frame(), result.ended_triples())
    return reasons


@pytest.mark.parametrize("ids", [True, False], ids=["with ids", "text only"])
def test_requests_go_back_to_what_an_earlier_night_replaced(ids: bool) -> None:
    there, back = asked("u1", "P22", "1", "2", "3", ids=ids), asked("u2", "P22", "1", "3", "2", ids=ids)
    assert two_nights(there, back) == ["requested_change", "rollback_to_original"]


@pytest.mark.parametrize("ids", [True, False], ids=["with ids", "text only"])
def test_a_request_that_denies_an_earlier_one_waits(ids: bool) -> None:
    father, child = asked("u1", "P22", "1", "2", "3", ids=ids), asked("u2", "P40", "3", "1", "4", ids=ids)
    assert two_nights(father, child) == ["requested_change", "inverse_conflict"]


def test_requests_that_go_on_from_each_other_are_one_chain() -> None:
    with Warehouse.open(":memory:") as store:
        chain = [asked("u1", "P22", "1", "2", "3", ids=False), asked("u2", "P22", "1", "3", "4", ids=False)]
        round_trip = [asked("u3", "P22", "5", "2", "3"), asked("u4", "P22", "5", "3", "2")]
        result = validate_night(store, "night-01", [*chain, *round_trip], NOW, suite=no_suite)
    assert [v.reason for v in result.verdicts] == [
        "superseded_within_night", "requested_change", "reverted_same_night", "net_noop",
    ]  # fmt: skip
