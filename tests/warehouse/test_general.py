"""The general facts: what is shipped, and the script that chose it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest

from warehouse.reference import world
from warehouse.reference.general import HERE, build
from warehouse.reference.general.world import SPLITS, general_facts, wordings

FACTS = general_facts()
RELATIONS = sorted({fact.relation for fact in FACTS})


def test_provenance_names_the_facts_as_they_are_shipped() -> None:
    said = json.loads((HERE / "provenance.json").read_text())
    assert said["facts_sha256"] == hashlib.sha256((HERE / "facts.csv").read_bytes()).hexdigest()
    assert said["facts"] == len(FACTS)
    assert said["by_relation"] == Counter(fact.relation for fact in FACTS)
    assert said["by_split"] == Counter(fact.split for fact in FACTS)
    assert f"{len(FACTS):,} real Wikidata triples over {len(RELATIONS)} relations" in (HERE / "README.md").read_text()


def test_a_label_means_one_subject_and_a_slot_has_one_answer() -> None:
    labels = {(fact.subject, fact.subject_id) for fact in FACTS}
    assert len(labels) == len({label for label, _ in labels}) == len({subject_id for _, subject_id in labels})
    assert len({(fact.subject_id, fact.relation) for fact in FACTS}) == len(FACTS)


def test_every_relation_has_wordings_and_no_other_has() -> None:
    assert set(wordings()) == set(RELATIONS) | set(world.templates())


def test_a_subject_is_in_one_split_and_each_split_has_its_share() -> None:
    splits = defaultdict(set)
    for fact in FACTS:
        splits[fact.subject_id].add(fact.split)
    assert all(len(found) == 1 for found in splits.values())
    count = Counter(fact.split for fact in FACTS)
    assert {split: count[split] / len(FACTS) for split in SPLITS} == pytest.approx(
        {"calibration": 0.3, "development": 0.35, "report": 0.35}, abs=0.03
    )


@pytest.mark.parametrize("relation", RELATIONS)
def test_each_split_of_a_relation_has_demonstrations_and_something_to_ask(relation: str) -> None:
    for split in SPLITS:
        of_split = [fact for fact in FACTS if fact.relation == relation and fact.split == split]
        assert len(of_split) >= 10 and len({fact.object for fact in of_split}) >= 3, split


@pytest.mark.parametrize("relation", sorted(set(RELATIONS) - build.FEW_ANSWERS))
def test_guessing_the_commonest_answer_of_a_relation_is_poor(relation: str) -> None:
    answers = Counter(fact.object for fact in FACTS if fact.relation == relation)
    assert max(answers.values()) <= build.MAX_ANSWER_SHARE * answers.total()


def test_no_question_gives_its_answer_away() -> None:
    for fact in FACTS:
        subject, obj = fact.subject.casefold(), fact.object.casefold()
        assert subject not in obj and obj not in subject, fact


def test_the_embedded_world_says_nothing_else_of_a_slot() -> None:
    embedded = {(fact.subject_id, fact.relation): fact.object_id for fact in world.facts()}
    assert all(embedded.get((f.subject_id, f.relation), f.object_id) == f.object_id for f in FACTS)


def test_no_recorded_night_writes_to_a_slot() -> None:
    written = set()
    for path in world.NIGHTS.glob("*.events.jsonl"):
        for line in path.read_text().splitlines():
            event = json.loads(line)
            written.add(((event.get("subject") or {}).get("id"), (event.get("property") or {}).get("id")))
    assert len(written) > 100
    assert {(fact.subject_id, fact.relation) for fact in FACTS} & written == set()


# ------------------------------------------------------------ the script


def triple(number: int, relation: str = "P103", **changed: object) -> dict[str, object]:
    row = {
        "subject_qid": f"Q{number}0001",
        "subject_label": f"Person {number}",
        "property_pid": relation,
        "object_qid": f"Q{number % 5}",
        "object_label": f"Tongue {'abcde'[number % 5]}",
        "source": "lama_trex",
        "flags": "",
        "n_objects": 1,
    }
    return row | changed


def folder(path: Path, rows: list[dict[str, object]]) -> Path:
    path.mkdir()
    pd.DataFrame(rows).to_parquet(path / "facts.parquet")
    return path


def test_the_script_writes_the_same_bytes_whatever_the_order_of_the_triples(tmp_path: Path) -> None:
    rows = [triple(number) for number in range(60)]
    written = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        (out := tmp_path / f"out-{name}").mkdir()
        build.main(folder(tmp_path / name, order), out)
        written.append((out / "facts.csv").read_bytes())
    assert written[0] == written[1] and written[0].count(b"\n") == 61
    said = json.loads((out / "provenance.json").read_text())
    assert said["facts_sha256"] == hashlib.sha256(written[1]).hexdigest() and said["by_source"] == {"lama_trex": 60}


@pytest.mark.parametrize(
    "unwanted",
    [
        [triple(900, flags="self_loop")],
        [triple(900, flags="non_ascii;ambiguous_object_label")],
        [triple(900, n_objects=2)],
        [triple(900, relation="P184")],
        [triple(900, subject_label="x" * 41)],
        [triple(900, object_label="x" * 26)],
        [triple(900, subject_label="Tongue a of old", object_label="tongue A")],
        [triple(900, subject_label="Mexico", object_label="Mexico City")],
        [triple(900, subject_label="Twin"), triple(901, subject_label="Twin")],
        [triple(900), triple(900, object_qid="Q9", object_label="Another")],
        [triple(900, "P176", subject_label="angel")],
        [triple(900, object_label="Canadian English")],
    ],
)
def test_a_triple_that_makes_a_bad_question_is_left_out(tmp_path: Path, unwanted: list[dict[str, object]]) -> None:
    kept = build.choose(folder(tmp_path / "data", [triple(number) for number in range(40)] + unwanted))
    assert len(kept) == 40 and set(kept.relation) == {"P103"}


@pytest.mark.parametrize("flags", ["non_ascii", "qid_from_label;non_ascii"])
def test_a_harmless_flag_leaves_nothing_out(tmp_path: Path, flags: str) -> None:
    assert len(build.choose(folder(tmp_path / "data", [triple(n, flags=flags) for n in range(40)]))) == 40


def test_a_slot_of_the_embedded_world_is_taken_only_with_its_own_object(tmp_path: Path) -> None:
    """French is what the embedded world has for one, and for the other it is not."""
    written = {json.loads(line)["subject"]["label"] for p in world.NIGHTS.glob("*.events.jsonl") for line in p.open()}
    told = [fact for fact in world.facts() if fact.relation == "P103" and fact.subject not in written]
    same = triple(900, subject_label=told[0].subject, object_label=told[0].object)
    other = triple(901, subject_label=told[1].subject, object_label="Klingon")
    kept = build.choose(folder(tmp_path / "data", [triple(number) for number in range(40)] + [same, other]))
    assert told[0].subject in set(kept.subject) and told[1].subject not in set(kept.subject)


def test_an_answer_beyond_its_share_loses_the_surplus_to_what_follows() -> None:
    answers = dict(enumerate(["a"] * 10 + ["b", "c", "d", "e", "f", "g", "h"]))
    assert build._take(answers, 8, 0.25) == [0, 1, 10, 11, 12, 13, 14, 15]


def test_the_share_holds_also_where_the_quota_is_not_reached() -> None:
    answers = dict(enumerate(["a"] * 10 + ["b"] * 3 + ["c"] * 3 + ["d"] * 3 + ["e"] * 3))
    taken = Counter(answers[row] for row in build._take(answers, 100, 0.25))
    assert taken["a"] <= 0.25 * taken.total() and taken.total() > 12


def test_well_known_subjects_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.QUOTA, "P103", 8)
    known = {3, 5, 12, 14, 26, 31, 38, 39}
    more = [triple(number, relation="P800", object_qid=f"Q7{number}") for number in known]
    kept = build.choose(folder(tmp_path / "data", [triple(number) for number in range(40)] + more))
    assert {int(label.split()[1]) for label in kept.subject} == known
