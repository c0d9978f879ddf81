"""Choose the general facts from a folder of Wikidata triples.

    python -m warehouse.reference.general.build DATA_DIR

writes `facts.csv` and `provenance.json` beside this file. It was run once; the result is committed, so the product never
needs the folder again. Facts, ids and labels are Wikidata's (CC0). No model chose single facts: relations were kept or
left out by how often a small model answers them, facts by how often their subject occurs, then by hash.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from warehouse.reference import world
from warehouse.reference.general import HERE
from warehouse.reference.general.world import SPLITS
from warehouse.reference.splits import split_of

#: Most facts taken for each relation: many where a small model answers often, few where it seldom does.
QUOTA = {
    "P20": 100, "P27": 150, "P30": 95, "P36": 90, "P37": 110, "P103": 520, "P140": 150,
    "P176": 100, "P178": 180, "P364": 200, "P407": 150, "P495": 80, "P1376": 65, "P1412": 400,
}  # fmt: skip
#: No answer may hold more than this share of a relation's facts, so that a majority guess stays poor ...
MAX_ANSWER_SHARE = 0.25
#: ... but where so few answers exist that the cap would leave almost nothing.
FEW_ANSWERS = {"P30"}
#: Flags of the data that do no harm. P30, P36, P37 and P1376 exist only as label-resolved pairs.
HARMLESS_FLAGS = {"non_ascii", "qid_from_label"}
#: Longer labels are titles and descriptions, which nobody uses as a name.
MAX_SUBJECT_CHARS, MAX_OBJECT_CHARS = 40, 25
#: A subject of that many triples counts as well known; more occurrences say nothing more.
OFTEN = 4
#: Read and found misleading: former or disputed capitals, homonyms, one of many values, an answer of another type.
LEFT_OUT = {
    "P30": ("Arab League", "Soviet Union", "Umayyad Caliphate", "United States of America"),
    "P36": ("Bohemia", "Israel", "Sicily", "Sindh", "Sovereign Military Order of Malta", "Umayyad Caliphate"),
    "P37": ("Collective Security Treaty Organisation", "Cyprus", "Pays de la Loire", "World Trade Organization"),
    "P140": ("Jerusalem",),
    "P176": (
        "angel", "omnipotence", "muscle car", "Bluesmobile", "Hepcidin antimicrobial peptide", "Ictineo II", "Pratt & Miller",
    ),
    "P1376": ("Beijing", "Bonn", "Jayapura", "Nanjing", "Palermo", "Rio de Janeiro", "Taipei"),
}  # fmt: skip
#: Labels that nobody answers with: stages and varieties where people name the language, believers in place of a religion.
LABELS_LEFT_OUT = {
    "American English", "Canadian English", "Christian", "Early Modern English", "Egyptian", "Hindus", "Middle English",
    "Middle French", "Muslim", "Python",
}  # fmt: skip
COLUMNS = {
    "subject_qid": "subject_id",
    "subject_label": "subject",
    "property_pid": "relation",
    "object_qid": "object_id",
    "object_label": "object",
}


def _rank(*parts: str) -> int:
    """A stable pseudo-random order of records, independent of row order and of Python's hash seed."""
    return int.from_bytes(hashlib.sha256("|".join(("errata-general-1", *parts)).encode()).digest()[:8], "big")


def _taken_slots() -> tuple[dict[tuple[str, str], str], set[tuple[str, str]]]:
    """The embedded world's object by (subject label, relation), and the slots that its nights write to."""
    objects = {(fact.subject, fact.relation): fact.object for fact in world.facts()}
    written = set()
    for path in sorted(world.NIGHTS.glob("*.events.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            written.add(((event.get("subject") or {}).get("label"), (event.get("property") or {}).get("id")))
    return objects, written


def _is_usable(row: Any) -> bool:
    flags = {flag for flag in str(row.flags or "").split(";") if flag and flag != "nan"}
    subject, obj = row.subject.casefold(), row.object.casefold()
    return (
        flags <= HARMLESS_FLAGS
        and row.n_objects == 1
        and row.subject not in LEFT_OUT.get(row.relation, ())
        and row.object not in LABELS_LEFT_OUT
        and len(subject) <= MAX_SUBJECT_CHARS
        and len(obj) <= MAX_OBJECT_CHARS
        and subject not in obj
        and obj not in subject
    )


def _candidates(data: Path) -> Any:
    triples = pd.read_parquet(data / "facts.parquet").rename(columns=COLUMNS)
    ids_of_label = triples.groupby("subject").subject_id.nunique()
    occurs = triples.subject_id.value_counts().add(triples.object_id.value_counts(), fill_value=0)
    objects, written = _taken_slots()
    pool: Any = triples[triples.relation.isin(QUOTA)]
    slots = zip(pool.subject, pool.relation, pool.object, strict=True)
    # Two stores of facts that disagree would make a fact of one wrong by an edit of the other.
    agrees = [(s, r) not in written and objects.get((s, r), o) == o for s, r, o in slots]
    usable = [_is_usable(row) for row in pool.itertuples()]
    pool = pool[[a and b for a, b in zip(agrees, usable, strict=True)]]
    # One label must mean one subject, else a prompt has two right answers.
    pool = pool[pool.subject.map(ids_of_label) == 1].drop_duplicates(["subject_id", "relation"], keep=False).copy()
    pool["often"] = -pool.subject_id.map(occurs).clip(upper=OFTEN)
    pool["rank"] = [_rank(s, r, o) for s, r, o in zip(pool.subject_id, pool.relation, pool.object_id, strict=True)]
    return pool.sort_values(["often", "rank"])


def _take(answers: dict[int, str], quota: int, share: float) -> list[int]:
    """The first `quota` rows of a relation (row -> answer, best first) of which no answer has more than its share."""
    while True:
        limit, counts, taken = int(share * quota), {}, []
        for row, answer in answers.items():
            if len(taken) < quota and counts.get(answer, 0) < limit:
                counts[answer] = counts.get(answer, 0) + 1
                taken.append(row)
        # Fewer rows than the quota lower what a share is: again, until both agree.
        if len(taken) == quota or not taken:
            return taken
        quota = len(taken)


def choose(data: Path) -> Any:
    """The general facts as a frame, with the source of each."""
    pool = _candidates(data)
    taken: list[int] = []
    for relation, quota in QUOTA.items():
        rows = pool[pool.relation == relation]
        taken += _take(rows.object_id.to_dict(), quota, 1.0 if relation in FEW_ANSWERS else MAX_ANSWER_SHARE)
    facts = pool.loc[taken].copy()
    facts["number"] = facts.relation.str[1:].astype(int)
    return facts.sort_values(["number", "subject_id"])[[*COLUMNS.values(), "source"]].reset_index(drop=True)


def main(data: Path, out: Path = HERE) -> None:
    facts = choose(data)
    facts.drop(columns="source").to_csv(out / "facts.csv", index=False)
    summary = {
        "facts": len(facts),
        "subjects": facts.subject_id.nunique(),
        "by_relation": {relation: int(n) for relation, n in facts.relation.value_counts(sort=False).items()},
        "by_split": {name: int((facts.subject_id.map(split_of) == name).sum()) for name in SPLITS},
        "by_source": {source: int(n) for source, n in facts.source.value_counts().sort_index().items()},
        "triples_sha256": hashlib.sha256((data / "facts.parquet").read_bytes()).hexdigest(),
        "facts_sha256": hashlib.sha256((out / "facts.csv").read_bytes()).hexdigest(),
    }
    (out / "provenance.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
