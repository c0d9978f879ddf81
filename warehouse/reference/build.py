"""Choose the reference world's facts and nights from a folder of Wikidata triples.

    python -m warehouse.reference.build DATA_DIR

writes `facts.csv`, `properties.csv`, `provenance.json` and `nights/` beside this file. It was run once; the
result is committed, so the product never needs the folder again. Facts, ids and labels are Wikidata's (CC0).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from warehouse.reference import HERE

NUM_TEMPLATES = 10
HARMLESS_FLAGS = {"non_ascii", "long_label"}
#: Most facts taken for each property. Skewed properties (P103, P413: one answer has half of the facts) get less.
QUOTA = {
    "P19": 400, "P20": 330, "P22": 360, "P25": 360, "P27": 360, "P30": 95, "P36": 100, "P103": 200, "P108": 200,
    "P127": 240, "P138": 100, "P140": 180, "P159": 300, "P170": 200, "P176": 120, "P178": 170, "P264": 200,
    "P364": 200, "P407": 200, "P413": 180, "P449": 260, "P495": 320, "P740": 320,
    "P26": 60, "P40": 60, "P69": 60, "P136": 60, "P166": 60,
}  # fmt: skip
#: No answer may hold more than this share of a property's quota, so that a majority guess stays poor.
MAX_ANSWER_SHARE = 0.25
#: Share of facts with templates kept out of training, and how many templates each of those facts lacks.
HELD_OUT_SHARE, HELD_OUT_TEMPLATES = 0.4, 3


def _rank(*parts: str) -> int:
    """A stable pseudo-random order of records, independent of row order and of Python's hash seed."""
    return int.from_bytes(hashlib.sha256("|".join(("errata-world-1", *parts)).encode()).digest()[:8], "big")


def held_out_templates(subject_id: str, relation: str) -> tuple[int, ...]:
    """Indices of the templates never trained for this slot; the canonical template 0 is always trained."""
    if _rank("held", subject_id, relation) / 2**64 >= HELD_OUT_SHARE:
        return ()
    order = sorted(range(1, NUM_TEMPLATES), key=lambda i: _rank("template", subject_id, relation, str(i)))
    return tuple(sorted(order[:HELD_OUT_TEMPLATES]))


def _candidates(data: Path, base: pd.DataFrame) -> Any:
    facts = pd.read_parquet(data / "facts.parquet").rename(
        columns={
            "subject_qid": "subject_id",
            "subject_label": "subject",
            "property_pid": "relation",
            "object_qid": "object_id",
            "object_label": "object",
        }
    )
    reserved = pd.read_csv(data / "updates" / "reserved_facts.csv")
    reserved_slots = set(zip(reserved.subject_qid, reserved.property_pid, strict=True))
    base_slots = set(zip(base.subject_id, base.relation, strict=True))
    flag_sets = [{f for f in str(text or "").split(";") if f and f != "nan"} for text in facts["flags"]]
    # P30 and P36 exist only as label-resolved pairs; their ids were unambiguous within the type.
    allowed = [HARMLESS_FLAGS | ({"qid_from_label"} if pid in {"P30", "P36"} else set()) for pid in facts.relation]
    clean = [flags <= ok for flags, ok in zip(flag_sets, allowed, strict=True)]
    slots = list(zip(facts.subject_id, facts.relation, strict=True))
    keep = [
        c and n == 1 and slot not in reserved_slots and slot not in base_slots and pid in QUOTA
        for c, n, slot, pid in zip(clean, facts.n_objects, slots, facts.relation, strict=True)
    ]
    return facts.loc[keep]


def choose(data: Path) -> Any:
    lines = (data / "updates" / "base_facts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    base = pd.DataFrame(
        {
            "subject_id": r["subject"]["id"],
            "subject": r["subject"]["label"],
            "relation": r["property"]["id"],
            "object_id": r["object"]["id"],
            "object": r["object"]["label"],
            "origin": "update_nights",
        }
        for r in rows
    ).drop_duplicates(["subject_id", "relation", "object_id"])
    pool: Any = _candidates(data, base).copy()
    pool["origin"] = pool["source"]
    # Subjects with several facts serve relation specificity; objects that are subjects serve two-hop questions.
    per_subject = pool.groupby("subject_id").relation.transform("nunique")
    chained = pool.object_id.isin(set(pool.subject_id) | set(base.subject_id))
    touches_night = pool.subject_id.isin(set(base.subject_id) | set(base.object_id))
    pool["priority"] = -(2 * touches_night.astype(int) + (per_subject > 1).astype(int) + chained.astype(int))
    pool["rank"] = [_rank(s, r, o) for s, r, o in zip(pool.subject_id, pool.relation, pool.object_id, strict=True)]
    pool = pool.sort_values(["priority", "rank"])
    taken = []
    for relation, quota in QUOTA.items():
        of_base = base[base.relation == relation]
        counts = of_base.object_id.value_counts().to_dict()
        room, limit = quota - len(of_base), max(2, int(MAX_ANSWER_SHARE * quota))
        for row in pool[pool.relation == relation].itertuples():
            if room <= 0:
                break
            # Few answers exist for continents; the cap would leave almost nothing.
            if relation != "P30" and counts.get(row.object_id, 0) >= limit:
                continue
            counts[row.object_id] = counts.get(row.object_id, 0) + 1
            taken.append(row.Index)
            room -= 1
    columns = list(base.columns)
    world: Any = pd.concat([base[base.relation.isin(QUOTA)], pool.loc[taken, columns]])
    # One label must mean one subject, else a prompt has two right answers.
    ids_of_label = world.groupby("subject").subject_id.transform("nunique")
    world = world[(ids_of_label == 1) | (world.origin == "update_nights")]
    world["held_out"] = [
        " ".join(map(str, held_out_templates(s, r))) for s, r in zip(world.subject_id, world.relation, strict=True)
    ]
    world["number"] = world.relation.str[1:].astype(int)
    return world.sort_values(["number", "subject_id", "object_id"]).drop(columns="number").reset_index(drop=True)


def main(data: Path) -> None:
    world = choose(data)
    world.to_csv(HERE / "facts.csv", index=False)
    shutil.copy(data / "properties.csv", HERE / "properties.csv")
    nights = HERE / "nights"
    nights.mkdir(exist_ok=True)
    for path in sorted((data / "updates").glob("night-*.jsonl")):
        shutil.copyfile(path, nights / path.name)
    digest = hashlib.sha256((HERE / "facts.csv").read_bytes()).hexdigest()
    summary = {
        "facts": len(world),
        "properties": world.relation.nunique(),
        "subjects": world.subject_id.nunique(),
        "by_origin": world.origin.value_counts().to_dict(),
        "facts_sha256": digest,
    }
    (HERE / "provenance.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
