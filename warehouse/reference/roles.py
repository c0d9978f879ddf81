"""In which roles an entity is known beyond the facts of the embedded world: evidence for the type check, no fact to teach.

`roles.csv` has one row for each entity and property: the entity is the `object` or the `subject` of that property in the
triples that the reference facts were chosen from (see README.md; Wikidata, CC0 1.0). It is made once by `build_roles`:

    python -m warehouse.reference.roles FACTS.parquet
"""

from __future__ import annotations

import csv
import sys
from functools import cache
from pathlib import Path

import pandas as pd

from warehouse.reference import HERE

ROLES_FILE = HERE / "roles.csv"
#: Properties whose values can be anything tell nothing about what an entity is.
UNINFORMATIVE = frozenset({"P31", "P279", "P361", "P527", "P366", "P138", "P101"})


def build_roles(facts: pd.DataFrame) -> pd.DataFrame:
    """Roles of every entity that is the object of a triple.

    Args:
        facts: (triples, subject_qid | property_pid | object_qid ...), real triples.

    Returns:
        (roles, entity | pid | side), sorted; `side` is "object" or "subject".
    """
    known = facts[["subject_qid", "property_pid", "object_qid"]].itertuples(index=False, name=None)
    triples = [triple for triple in known if triple[1] not in UNINFORMATIVE]
    valued = {obj for _, _, obj in triples}
    rows = {(obj, pid, "object") for _, pid, obj in triples} | {
        (subject, pid, "subject") for subject, pid, _ in triples if subject in valued
    }
    return pd.DataFrame(sorted(rows), columns=["entity", "pid", "side"])


@cache
def read_roles() -> pd.DataFrame:
    """The shipped roles as triples with one unknown end, as `warehouse.nights.conflicts` reads evidence."""
    with ROLES_FILE.open(encoding="utf-8", newline="") as handle:
        rows = [
            ("", row["pid"], row["entity"]) if row["side"] == "object" else (row["entity"], row["pid"], "")
            for row in csv.DictReader(handle)
        ]
    return pd.DataFrame(rows, columns=["subject_id", "relation", "object_id"], dtype="string")


if __name__ == "__main__":
    build_roles(pd.read_parquet(Path(sys.argv[1]))).to_csv(ROLES_FILE, index=False, lineterminator="\n")
