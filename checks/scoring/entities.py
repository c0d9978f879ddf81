"""Score the entity parser and the diff on real documents, real revision pairs and their recorded differences.

A folder holds entity documents (`*.json`), `revisions/ID/REVISION.json` and `real_diffs.jsonl`; where it also has
`temporal_statements.jsonl`, start, end and rank of its statements are compared too.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from checks.errors import ChecksError
from warehouse.wikidata.entities import (
    EntityDocument,
    EntityValue,
    SetAside,
    Snak,
    Statement,
    StatementChange,
    diff_statements,
    diff_terms,
    parse_entities,
    parse_entity,
)

#: Identifiers, media and links are no facts about the world; the recorded differences leave them out.
NO_FACTS = frozenset({"external-id", "commonsMedia", "url", "geo-shape", "tabular-data"})
#: Our names of the recorded kinds of change.
KINDS = {
    "statement_added": "added",
    "statement_removed": "removed",
    "value_changed": "value",
    "rank_changed": "rank",
    "qualifiers_changed": "qualifiers",
    "references_only": "references",
    "term_changed": "term",
}
#: The kinds of which not one may be missed or made up.
STATEMENT_KINDS = frozenset({"added", "removed", "value"})
#: (entity, old revision, new revision).
Pair = tuple[str, str, str]
#: (pair, statement id or term, kind).
Mark = tuple[Pair, str, str]


class EntityScoringError(ChecksError):
    """A folder of entity documents cannot be scored: names the file and what it lacks."""


def score_entities(folder: Path) -> dict[str, Any]:
    """Read every document, diff every recorded revision pair and hold both against the records.

    Returns:
        JSON-able: `errors` (documents at which the parser raised), `precision` and `recall` over STATEMENT_KINDS;
        `documents` (n, entities, statements, set_aside by reason, left_out by reason, errors: documents at
        which the parser raised); `diffs` (precision, recall, n, by_kind; `same_content`: share of found changes whose
        values, ranks and qualifiers equal the recorded ones; wrong: every missing or spurious change); `temporal`
        (n, right, wrong) or None.

    Raises:
        EntityScoringError: the folder has no documents or no `real_diffs.jsonl`, or a revision is missing.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if path.name != "INDEX.json"]
    paths += sorted(folder.glob("revisions/*/*.json"))
    if not paths or not (folder / "real_diffs.jsonl").exists():
        raise EntityScoringError(f"{folder} needs entity documents (*.json) and real_diffs.jsonl; name such a folder")
    documents, statements = _documents(folder, paths)
    temporal = folder / "temporal_statements.jsonl"
    diffs = _diffs(folder, _lines(folder / "real_diffs.jsonl"))
    return {
        "errors": len(documents["errors"]),
        "precision": diffs["statements"]["precision"],
        "recall": diffs["statements"]["recall"],
        "documents": documents,
        "diffs": diffs,
        "temporal": _temporal(_lines(temporal), statements) if temporal.exists() else None,
    }


# ---------------------------------------------------------------- documents


def _documents(folder: Path, paths: Sequence[Path]) -> tuple[dict[str, Any], dict[str, list[Statement]]]:
    set_aside: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    statements: dict[str, list[Statement]] = defaultdict(list)
    num_entities, errors = 0, []
    for path in paths:
        try:
            found = parse_entities(path.read_bytes())
        except Exception as error:  # the very thing that is measured
            errors.append({"document": str(path.relative_to(folder)), "error": f"{type(error).__name__}: {error}"})
            continue
        for entity in found:
            if isinstance(entity, SetAside):
                set_aside[entity.reason] += 1
                continue
            num_entities += 1
            left_out.update(left.reason for left in entity.left_out)
            for statement in entity.statements:
                statements[statement.key].append(statement)
    summary = {
        "n": len(paths),
        "entities": num_entities,
        "statements": sum(map(len, statements.values())),
        "set_aside": dict(set_aside),
        "left_out": dict(left_out),
        "errors": errors,
    }
    return summary, statements


def _temporal(rows: Iterable[dict[str, Any]], statements: dict[str, list[Statement]]) -> dict[str, Any]:
    wrong, n = [], 0
    for row in rows:
        n += 1
        expected = (row["rank"], row["start"], row["end"])
        # One statement stands in several revisions; the record is of one of them.
        found = [(s.rank, _times(s, "P580"), _times(s, "P582")) for s in statements.get(row["statement_id"].casefold(), [])]
        if expected not in found:
            wrong.append({"statement_id": row["statement_id"], "expected": expected, "found": found[:1]})
    return {"n": n, "right": n - len(wrong), "wrong": wrong}


def _times(statement: Statement, pid: str) -> list[str]:
    return [snak.value.parts[0] for snak in statement.qualifiers if snak.pid == pid and snak.value is not None]


# ---------------------------------------------------------------- diffs


def _diffs(folder: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    expected: dict[Mark, dict[str, Any]] = {}
    for row in rows:
        pair = (row["entity"], row["from_rev"], row["to_rev"])
        for part in row["change"].split("+"):
            if part not in KINDS:
                raise EntityScoringError(f"real_diffs.jsonl: {row['diff_id']} has the unknown change {part!r}")
            expected[pair, (row.get("statement_id") or row.get("term", "")).casefold(), KINDS[part]] = row
    found: dict[Mark, StatementChange | None] = {}
    # Records that leave out changes of references alone do not call ours wrong.
    references = any(mark[2] == "references" for mark in expected)
    for pair in sorted({mark[0] for mark in expected}):
        before, after = (_revision(folder, pair[0], revision) for revision in pair[1:])
        for change in diff_statements(before, after, references=references):
            if change.datatype not in NO_FACTS:
                kinds = [kind for kind in change.kinds if kind != "references" or change.kinds == ("references",)]
                found |= {(pair, change.statement_id.casefold(), kind): change for kind in kinds}
        found |= {(pair, change.term, "term"): None for change in diff_terms(before, after)}
    hits = expected.keys() & found.keys()
    same = [_same(expected[mark], change) for mark in sorted(hits) if (change := found[mark]) is not None]
    kinds = sorted({mark[2] for mark in expected.keys() | found.keys()})
    return {
        **_rates(expected.keys(), found.keys()),
        "statements": _rates(*({m for m in marks if m[2] in STATEMENT_KINDS} for marks in (expected, found))),
        "by_kind": {kind: _rates({m for m in expected if m[2] == kind}, {m for m in found if m[2] == kind}) for kind in kinds},
        "same_content": sum(same) / len(same) if same else None,
        "wrong": [
            {
                "entity": pair[0],
                "from": pair[1],
                "to": pair[2],
                "statement": statement,
                "kind": kind,
                "problem": "missing" if (pair, statement, kind) in expected else "spurious",
            }
            for pair, statement, kind in sorted(expected.keys() ^ found.keys())
        ],
    }


def _rates(expected: Iterable[Mark], found: Iterable[Mark]) -> dict[str, Any]:
    expected, found = set(expected), set(found)
    hits = len(expected & found)
    return {
        "precision": hits / len(found) if found else None,
        "recall": hits / len(expected) if expected else None,
        "n": len(expected),
        "found": len(found),
    }


def _revision(folder: Path, entity_id: str, revision: str) -> EntityDocument:
    path = folder / "revisions" / entity_id / f"{revision}.json"
    if not path.exists():
        raise EntityScoringError(f"{path}: no such document, but real_diffs.jsonl compares it")
    entity = parse_entity(path.read_bytes(), entity_id)
    if isinstance(entity, SetAside):
        raise EntityScoringError(f"{path}: {entity.sentence}")
    return entity


def _same(row: dict[str, Any], change: StatementChange) -> bool:
    return all(
        (recorded := row.get(side)) is None or (held is not None and _content(recorded) == _content_of(held))
        for side, held in (("old", change.old), ("new", change.new))
    )


def _content(side: dict[str, Any]) -> tuple[Any, ...]:
    qualifiers = [(pid, _recorded(value)) for pid, values in side.get("qualifiers", {}).items() for value in values]
    return _recorded(side["value"]), side["rank"], Counter(qualifiers)


def _content_of(statement: Statement) -> tuple[Any, ...]:
    qualifiers = [(snak.pid, _shown(snak)) for snak in statement.qualifiers]
    return _shown(statement.snak), statement.rank, Counter(qualifiers)


def _recorded(value: dict[str, Any]) -> tuple[str, ...]:
    """A recorded value as `EntityValue.parts`, or the name of its snak type."""
    kind = value["type"]
    if kind == "coord":
        return tuple(f"{round(value[name], 9):.9f}" for name in ("lat", "lon"))
    fields = {
        "item": ("id",),
        "string": ("value",),
        "text": ("lang", "text"),
        "quantity": ("amount", "unit"),
        "time": ("time", "precision", "calendar"),
    }
    return tuple(str(value[name]) for name in fields[kind]) if kind in fields else (kind,)


def _shown(snak: Snak) -> tuple[str, ...]:
    value: EntityValue | None = snak.value
    if value is None:
        return (snak.snaktype,)
    # A recorded coordinate has no globe.
    return value.parts[:2] if value.type == "coordinate" else value.parts


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise EntityScoringError(f"{path} cannot be read: {error}; expected one JSON object on each line") from error
