"""Search for a subject; and a subject: what Wikidata said of it, what the model was taught, and what it answers."""

from __future__ import annotations

import shlex

from flows.dashboard.addresses import fact_page, night_page
from flows.dashboard.asking import Page, Visit
from flows.dashboard.sheets import Column, Sheet
from warehouse.dashboard.fact import (
    answers_of_subject,
    believed_of,
    edits_of_subject,
    find_subjects,
    subject_of,
)
from warehouse.dashboard.night import nights_run
from warehouse.errors import NotFound


def facts(asked: Visit) -> Page:
    """Subjects whose label contains what is looked for."""
    words = asked.text("q")
    hits, total = find_subjects(asked.wh, words, limit=asked.limit, offset=asked.offset)
    columns = (
        Column("subject", "subject", link=lambda hit: fact_page(hit.key, asked.lineage)),
        Column("subject_id", "id", "code"),
        Column("facts", "facts", "number"),
        Column("requests", "edit requests", "number"),
    )
    sheet = Sheet(
        "subjects", "Subjects", columns, hits, total, f"no subject with {words!r}" if words else "say what to look for"
    )
    return Page("Facts", "facts.html", (sheet,), {"words": words})


def fact(asked: Visit) -> Page:
    """One subject on one lineage.

    Raises:
        NotFound: the warehouse has heard nothing of it.
    """
    wh, key, lineage = asked.wh, asked.text("subject"), asked.lineage
    hit = subject_of(wh, key) if key else None
    if hit is None:
        raise NotFound(f"no subject {key!r} in the warehouse; search for a part of its label")
    edits = edits_of_subject(wh, key, lineage)
    answers, total = answers_of_subject(wh, key, lineage, limit=asked.limit, offset=asked.offset)
    sheets = (
        Sheet(
            "believed", "On Wikidata's side", _believed(lineage, nights_run(wh, lineage)), believed_of(wh, key), empty="no fact"
        ),
        Sheet("edits", "On the model's side", _edits(lineage), edits, empty=f"no edit on lineage {lineage}"),
        Sheet("answers", "Answers at each checkpoint", _answers(lineage), answers, total, "it was never asked"),
    )
    reverts = [
        {"edit": edit, "command": shlex.join(["errata", "revert", edit.edit_id, "--lineage", lineage, "--reason", "SAY WHY"])}
        for edit in edits
        if edit.in_force
    ]
    return Page(hit.subject, "fact.html", sheets, {"hit": hit, "edits": edits, "reverts": reverts})


def _believed(lineage: str, ran: frozenset[str]) -> tuple[Column, ...]:
    def link(night: str | None) -> str | None:
        return _night(lineage, night) if night in ran else None

    return (
        Column("label", "relation"),
        Column("relation", "id", "code"),
        Column("object", "value"),
        Column("valid_from", "holds from", "time"),
        Column("valid_to", "holds to", "time"),
        Column("known_from_night", "believed from", "night", link=lambda row: link(row.known_from_night)),
        Column("known_to_night", "believed to", "night", link=lambda row: link(row.known_to_night)),
        Column("revision", "revision", "code"),
    )


def _edits(lineage: str) -> tuple[Column, ...]:
    return (
        Column("night", "night", "night", link=lambda row: _night(lineage, row.night)),
        Column("label", "relation"),
        Column("target_new", "answer"),
        Column("target_true", "was"),
        Column("in_force", "in force", "yes"),
        Column("status", "status"),
        Column("reason", "reason", "long"),
        Column("records", "records", "code"),
        Column("sentence", "verdict on them", "long"),
        Column("decided", "checkpoint was"),
        Column("edit_id", "edit", "digest"),
    )


def _answers(lineage: str) -> tuple[Column, ...]:
    return (
        Column("night", "checkpoint of", "night", link=lambda row: _night(lineage, row.night)),
        Column("verdict", "it was"),
        Column("kind", "kind"),
        Column("prompt", "question", "long"),
        Column("answer", "answer", "long"),
        Column("expected", "expected", "long"),
        Column("is_right", "right", "yes"),
    )


def _night(lineage: str, night: str | None) -> str | None:
    return night_page(lineage, night) if night else None
