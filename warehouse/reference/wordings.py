"""Wordings of a relation, as statements to go on with and as questions: how a model is asked, and from what it learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SUBJECT = "{s}"
#: One canonical wording, four to measure an edit with, and four others for it to learn from.
FEWEST = 9
KINDS = ("statements", "questions")


@dataclass(frozen=True)
class Wordings:
    """English forms of one relation, each with `{s}` once; the first of each kind is canonical.

    Attributes:
        phrase: the relation inside a noun phrase ("the PHRASE of SUBJECT").
        statements: each ends where the object begins, and the object is all that is missing.
        questions: each ends with a question mark.
    """

    relation: str
    phrase: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]

    def statement(self, index: int, subject: str) -> str:
        # `replace`, not `format`: labels may hold braces.
        return self.statements[index].replace(SUBJECT, subject)

    def question(self, index: int, subject: str) -> str:
        return self.questions[index].replace(SUBJECT, subject)


def read_wordings(path: Path) -> dict[str, Wordings]:
    """Read the wordings of a file: `RELATION: {phrase: ..., statements: [...], questions: [...]}`.

    A user's own templates file may be given too: what else a relation has there (`prompts`, `inverse`) is not read here,
    and a relation with neither statements nor questions is left out.

    Raises:
        ValueError: the file is no such table, a relation lacks one of the kinds or has fewer than nine of it, or a wording
            is not one; the message names the file, the relation and the wording.
    """
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: found {type(table).__name__}, expected RELATION: {{phrase, statements, questions}}")
    found = {}
    for key, row in table.items():
        relation = str(key)
        if not isinstance(row, Mapping):
            raise ValueError(f"{path}: {relation}: found {row!r}, expected {{phrase, statements, questions}}")
        if any(kind in row for kind in KINDS):
            found[relation] = _wordings(path, relation, row)
    return found


def _wordings(path: Path, relation: str, row: Mapping[str, Any]) -> Wordings:
    phrase = row.get("phrase")
    if not isinstance(phrase, str) or not phrase.strip():
        raise ValueError(f"{path}: {relation}: needs a phrase (what the object is of the subject); found {phrase!r}")
    statements, questions = (_kind(path, relation, kind, row.get(kind)) for kind in KINDS)
    return Wordings(relation, phrase, statements, questions)


def _kind(path: Path, relation: str, kind: str, wordings: object) -> tuple[str, ...]:
    if not isinstance(wordings, list) or len(wordings) < FEWEST:
        number = len(wordings) if isinstance(wordings, list) else 0
        raise ValueError(
            f"{path}: {relation}: found {number} {kind}, expected at least {FEWEST}: "
            "one canonical, four to measure with, four to learn from"
        )
    for wording in wordings:
        if problem := _problem(kind, wording):
            raise ValueError(f"{path}: {relation}: {kind}: {problem}: {wording!r}")
    # A wording in both sets would be measured and learnt from.
    same, times = Counter(wording.casefold() for wording in wordings).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{path}: {relation}: {kind}: stands there {times} times: {same!r}")
    return tuple(wordings)


def _problem(kind: str, wording: object) -> str | None:
    """Why this is no wording of its kind, or None."""
    if not isinstance(wording, str):
        return f"is {type(wording).__name__}, not text"
    if wording.count(SUBJECT) != 1:
        return f"names the subject {SUBJECT} {wording.count(SUBJECT)} times, not once"
    if wording != " ".join(wording.split()):
        return "has spaces or line ends too many"
    if (kind == "questions") != wording.endswith("?"):
        return (
            "does not end with a question mark" if kind == "questions" else "is a question, and not a statement to go on with"
        )
    if kind == "statements" and wording.endswith((".", "!", ":", ",", ";")):
        return "ends with a mark, where the object should follow"
    return None
