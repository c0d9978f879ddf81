"""Score the validator on labelled pairs of edits that conflict: reverse, composite, coverage and round.

A file holds one case a line (gzip or plain): the facts that hold before, two edits, and what is expected of the pair.
Each case is judged twice by `validate_night`, as a small world of its own: both edits in one night, and the second one
the night after the first, against the ledger of past edits. Ids are prefixed by the case, so all cases share a store.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from checks.door.labels import label_problem
from checks.errors import ChecksError
from checks.judging.expectations import run_request_suite
from checks.judging.verdicts import NightVerdicts, Suite, validate_night
from checks.scoring.nights import fill_properties, score_nights
from warehouse.database.connection import Warehouse
from warehouse.records import Entity, Verdict
from warehouse.reference.world import NIGHTS
from warehouse.world.changes import Change, Value
from warehouse.world.facts import BASE_NIGHT, apply_fact_changes, fact_id
from warehouse.world.queries import held_objects

KINDS = ("reverse", "composite", "coverage", "round")
#: Reasons by which a record waits because another one, or the store, says otherwise.
CONFLICT_REASONS = frozenset({"inverse_conflict", "logical_conflict", "contradiction_within_night", "contradiction_with_store"})
_LOGICAL = {"reverse": "inverse_conflict", "composite": "logical_conflict"}
_DROPPED = frozenset({"superseded_within_night", "reverted_same_night", "net_noop"})
_NOW = datetime(2026, 1, 1, 22, tzinfo=UTC)
Case = dict[str, Any]
#: What became of the two edits of a case, and what the slot of the second one holds in the end.
PairOutcome = tuple[Verdict, Verdict, frozenset[str]]


class ConflictFileError(ChecksError):
    """A file of conflict cases that cannot be scored: names the file and the line."""


def score_conflicts(path: Path, nights: Path = NIGHTS, suite: Suite = run_request_suite) -> dict[str, Any]:
    """Judge every case of a file, and count how many good updates of labelled nights wait as a conflict.

    Returns:
        JSON-able: `recall` by kind, with `hard` and `soft` apart (`n`, `same_night`, `later_night`, `both`);
        `by_rule` likewise; `hard`, the share of hard reverse, composite and coverage cases found in both ways;
        `round`, of round edits; `set_aside`, cases whose edits are none by rule 1 (a subject or value without a
        readable name, a value that stays what it was), with the reason; `false_alarms` (`n`, `found`, `rate`,
        `records`); `missed`, the first hundred.

    Raises:
        ConflictFileError: the file is missing, empty, or a line is no case.
        ScoringError: `nights` holds no labelled nights.
    """
    everything = read_cases(path)
    set_aside = {case["case_id"]: why for case in everything if (why := unusable(case))}
    cases = [case for case in everything if case["case_id"] not in set_aside]
    judged = {mode: judge_cases(cases, mode, suite) for mode in ("same_night", "later_night")}
    rows: list[dict[str, Any]] = []
    for case in cases:
        found = {mode: is_recognised(case, mode, judged[mode][case["case_id"]]) for mode in judged}
        rows.append(
            {
                "case_id": case["case_id"],
                "kind": case["kind"],
                "rule": case["rule"]["id"],
                "strength": case["expected"].get("strength", "hard"),
                **found,
                "both": all(found.values()),
            }
        )
    missed = [row for row in rows if not row["both"]]
    strict = [row for row in rows if row["strength"] == "hard" and row["kind"] != "round"]
    return {
        "cases": len(rows),
        "set_aside": set_aside,
        "hard": _share(strict),
        "round": _share([row for row in rows if row["kind"] == "round"]),
        "recall": _table(rows, "kind"),
        "by_rule": _table(rows, "rule"),
        "false_alarms": _false_alarms(nights, suite),
        "missed": [
            row | {mode: _told(judged[mode][row["case_id"]]) for mode in judged if not row[mode]} for row in missed[:100]
        ],
    }


# ---------------------------------------------------------------- reading


def read_cases(path: Path) -> list[Case]:
    """The cases of a `.jsonl` or `.jsonl.gz` file."""
    if not path.is_file():
        raise ConflictFileError(f"{path}: no such file; name a .jsonl or .jsonl.gz file of conflict cases")
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConflictFileError(f"{path} cannot be read: {error}") from error
    cases = [_case(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not cases:
        raise ConflictFileError(f"{path} holds no case")
    if len({case["case_id"] for case in cases}) < len(cases):
        raise ConflictFileError(f"{path}: a case_id stands twice; every case needs its own")
    return cases


def _case(path: Path, number: int, line: str) -> Case:
    try:
        case = json.loads(line)
        assert case["kind"] in KINDS and len(case["edits"]) == 2 and case["case_id"] and case["rule"]["id"]
        for triple in (*case["facts"], *case["edits"]):
            assert triple["subject"]["id"] and triple["property"]["id"]
        assert all(edit["new_object"]["id"] for edit in case["edits"]) and isinstance(case["expected"], dict)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ConflictFileError(
            f"{path}, line {number}: no conflict case ({type(error).__name__}: {error}); it needs case_id, kind (one of "
            f"{', '.join(KINDS)}), rule.id, facts, two edits with subject, property, old_object, new_object, and expected"
        ) from error
    return case


def unusable(case: Case) -> str | None:
    """Why the two edits of a case are no pair: one of them is refused alone, whatever the other says."""
    for edit in case["edits"]:
        for entity in (edit["subject"], edit["new_object"]):
            if problem := label_problem(entity.get("label") or ""):
                return problem
        if edit["new_object"]["id"] == (edit.get("old_object") or {}).get("id"):
            return "no_change"
        if edit["new_object"]["id"] == edit["subject"]["id"]:
            return "self_reference"
    return None


# ---------------------------------------------------------------- judging


def judge_cases(cases: Sequence[Case], mode: str, suite: Suite = run_request_suite) -> dict[str, PairOutcome]:
    """Both edits of every case in one night (`same_night`), or the second one a night later (`later_night`)."""
    groups = [[0, 1]] if mode == "same_night" else [[0], [1]]
    verdicts: dict[str, Verdict] = {}
    with Warehouse.open(":memory:") as store:
        fill_properties(store)
        store.append("facts", [row for case in cases for row in _facts(case)])
        for number, group in enumerate(groups, 1):
            night = f"night-{number:02d}"
            changes = [_change(case, i, night, number) for case in cases for i in group]
            # The cases are worlds of their own: what they do together on one night means nothing.
            result: NightVerdicts = validate_night(
                store, night, changes, _NOW + timedelta(days=number), require_templates=False, suite=suite, guard_door=False
            )
            verdicts |= {v.record_id: v for v in result.verdicts}
            apply_fact_changes(store, night, result.added_frame(), result.ended_triples())
        held = _held(store)
    return {
        case["case_id"]: (
            verdicts[f"{case['case_id']}/0"],
            verdicts[f"{case['case_id']}/1"],
            frozenset(held[_slot(case, case["edits"][1])]),
        )
        for case in cases
    }


def _own(case: Case, entity: Mapping[str, Any]) -> str:
    return f"{case['case_id']}/{entity['id']}"


def _slot(case: Case, triple: Mapping[str, Any]) -> tuple[str, str]:
    return _own(case, triple["subject"]), triple["property"]["id"]


def _held(store: Warehouse) -> dict[tuple[str, str], set[str]]:
    found = {slot: {object_id.split("/", 1)[1] for object_id in objects} for slot, objects in held_objects(store).items()}
    return defaultdict(set, found)


def _facts(case: Case) -> Iterator[dict[str, Any]]:
    for fact in case["facts"]:
        row = {
            "subject_id": _own(case, fact["subject"]),
            "subject": fact["subject"]["label"],
            "relation": fact["property"]["id"],
            "object_id": _own(case, fact["object"]),
            "object": fact["object"]["label"],
            "rank": "normal",
            "statement_id": None,
            "revision": None,
            "valid_from": None,
            "valid_to": None,
            "source": "case",
            "known_from_night": BASE_NIGHT,
        }
        yield {**row, "fact_id": fact_id(row)}


def _change(case: Case, index: int, night: str, number: int) -> Change:
    edit = case["edits"][index]
    first = case["edits"][0]
    old = edit.get("old_object")
    # Wikidata keeps the id of a statement through its values: an edit of what the first one set is on its statement.
    same = _slot(case, edit) == _slot(case, first) and index and old is not None and old["id"] == first["new_object"]["id"]
    return Change(
        record_id=f"{case['case_id']}/{index}",
        night=night,
        received_at=_NOW + timedelta(days=number - 1, minutes=index),
        op="add_statement" if old is None else "set_value",
        subject=Entity(id=_own(case, edit["subject"]), label=edit["subject"]["label"]),
        relation=edit["property"]["id"],
        relation_label=edit["property"].get("label") or "",
        old=None if old is None else Value(type="item", id=_own(case, old), label=old["label"]),
        new=Value(type="item", id=_own(case, edit["new_object"]), label=edit["new_object"]["label"]),
        rank="normal",
        qualifiers={},
        references=1,
        statement_id=f"{case['case_id']}${0 if same else index}",
        editor_class="autoconfirmed",
        patrolled=True,
        comment="",
        tags=(),
        revision_old=None,
        revision_new=1000 * number + index,
    )


# ---------------------------------------------------------------- counting


def is_recognised(case: Case, mode: str, outcome: PairOutcome) -> bool:
    """Whether the two verdicts are what the kind of conflict asks for; see the module's head for the two modes."""
    checks: dict[tuple[str, str], Callable[[Case, PairOutcome], bool]] = {
        ("reverse", "same_night"): _both_wait,
        ("composite", "same_night"): _both_wait,
        ("reverse", "later_night"): _second_waits,
        ("composite", "later_night"): _second_waits,
        ("coverage", "same_night"): lambda c, o: _both_wait(c, o) or _only_the_last(c, o),
        ("coverage", "later_night"): _second_replaces,
        ("round", "same_night"): _both_dropped,
        ("round", "later_night"): _returns,
    }
    return checks[case["kind"], mode](case, outcome)


def _both_wait(_: Case, outcome: PairOutcome) -> bool:
    return all(v.verdict == "quarantine" and v.reason in CONFLICT_REASONS for v in outcome[:2])


def _second_waits(case: Case, outcome: PairOutcome) -> bool:
    first, second, _ = outcome
    waits = second.verdict == "quarantine" and second.reason == _LOGICAL[case["kind"]]
    return first.verdict in ("accept", "supersede") and waits


def _only_the_last(case: Case, outcome: PairOutcome) -> bool:
    first, second, held = outcome
    return first.reason in _DROPPED and second.verdict == "supersede" and _ends_right(case, held)


def _second_replaces(case: Case, outcome: PairOutcome) -> bool:
    first, second, held = outcome
    replaces = second.verdict == "supersede" and second.reason in ("newer_than_earlier_night", "rollback_to_original")
    return first.verdict == "supersede" and replaces and _ends_right(case, held)


def _both_dropped(case: Case, outcome: PairOutcome) -> bool:
    first, second, held = outcome
    dropped = {first.verdict, second.verdict} == {"reject"} and {first.reason, second.reason} <= _DROPPED
    return dropped and _ends_right(case, held)


def _returns(case: Case, outcome: PairOutcome) -> bool:
    first, second, held = outcome
    back = second.verdict == "supersede" and second.reason == "rollback_to_original"
    return first.verdict == "supersede" and back and _ends_right(case, held)


def _ends_right(case: Case, held: frozenset[str]) -> bool:
    final = case["edits"][1]["new_object"]["id"]
    survives = {final, *case["expected"].get("must_survive", ())}
    gone = set(case["expected"].get("must_not_survive", ())) - survives
    return survives <= held and not gone & held


def _share(rows: Sequence[Mapping[str, Any]], column: str = "both") -> float | None:
    return sum(row[column] for row in rows) / len(rows) if rows else None


def _table(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, dict[str, dict[str, Any]]]:
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row[column]][row["strength"]].append(row)
    return {
        key: {
            strength: {"n": len(group), **{mode: _share(group, mode) for mode in ("same_night", "later_night", "both")}}
            for strength, group in sorted(by_strength.items())
        }
        for key, by_strength in sorted(groups.items())
    }


def _told(outcome: PairOutcome) -> str:
    return ", ".join(f"{v.verdict} ({v.reason})" for v in outcome[:2])


def _false_alarms(nights: Path, suite: Suite) -> dict[str, Any]:
    score = score_nights(nights, suite)
    good = sum(n for truth in ("accept", "supersede") for n in score["confusion"].get(truth, {}).values())
    wrong = [
        error["record_id"]
        for error in score["errors"]
        if error["verdict"] in ("accept", "supersede") and error["given_reason"] in CONFLICT_REASONS
    ]
    return {"n": good, "found": len(wrong), "rate": len(wrong) / good if good else None, "records": wrong}
