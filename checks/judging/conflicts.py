"""Verdict rules: conflict columns in, one verdict out. The first rule that holds decides, so the order is the policy's.

Each rule is one row of a table: its name is the reason code, its predicate reads the columns of
`warehouse.nights.conflicts`, its sentence says it for people. To add a rule, add a row at its place in the order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from warehouse.records import EditRequest, Verdict, VerdictName

#: Conflict columns of one record, plus its labels, `shape_reason`, `kind`, `request_id`, `has_template`, `suspicion`
#: (`checks.door.text_safety`) and `waived`, the rules that a person has set aside for it.
Row = Mapping[str, Any]
Confidence = Literal["hard", "soft"]


@dataclass(frozen=True)
class VerdictRule:
    """One rule of the policy; `evidence` names the columns that hold related record ids."""

    name: str
    verdict: VerdictName
    applies: Callable[[Row], bool]
    sentence: Callable[[Row], str]
    evidence: tuple[str, ...] = ()
    confidence: Confidence | Callable[[Row], Confidence] = "hard"


def ids(text: str | None) -> tuple[str, ...]:
    """Ids that a column holds, joined by spaces; the store is no record."""
    return tuple(sorted({part for part in (text or "").split(" ") if part and part != "store"}))


def _slot(row: Row) -> str:
    return f"{row['subject_label']} / {row['relation_label']}"


def _new(row: Row) -> str:
    return f"'{_short(row['new_label'])}'"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _and(row: Row, column: str) -> str:
    return ", ".join(ids(row[column])) or "the store"


def _shape(name: str, verdict: VerdictName, what: str) -> VerdictRule:
    return VerdictRule(name, verdict, lambda r: r["shape_reason"] == name, lambda r: f"{_slot(r)}: {what}.")


def _is_change(row: Row) -> bool:
    return row["asserts"] and row["old_key"] != row["new_key"]


def _replaces(row: Row) -> bool:
    """Something that the slot holds gives way: a changed statement, a closed one, or the only place of the slot."""
    if row["is_request"]:
        return row["old_key"] is not None
    return not row["is_addition"] or row["closing_of"] is not None or (row["single"] and row["num_kept"] > 0)


def _fault(name: str, verdict: VerdictName) -> VerdictRule:
    return VerdictRule(
        name, verdict, lambda r: r["fault"] == name, lambda r: f"{_slot(r)}: {r['fault_sentence']}", ("fault_of",)
    )


#: What `checks.door.identity` and `checks.door.receipt` found: nothing may be guessed, so a person looks.
FAULT_RULES = (
    _fault("record_id_reused", "quarantine"),
    _fault("implausible_time", "quarantine"),
    _fault("ambiguous_relation", "quarantine"),
    _fault("ambiguous_label", "quarantine"),
)

SHAPE_RULES = (
    _shape("not_a_statement", "reject", "labels and descriptions are not facts"),
    _shape("unsupported_datatype", "reject", "the value is a string or a file, not an item"),
    _shape("no_value", "reject", "the new value is unknown or none, so there is nothing to learn"),
    _shape("empty_label", "reject", "a label is empty"),
    _shape("malformed_label", "reject", "a label is too long, a placeholder, or holds markup, code or controls"),
    _shape("no_english_label", "quarantine", "a label is a bare id or not in Latin script; it needs an English label"),
    _shape("prompt_without_subject", "reject", "the prompt does not contain the subject"),
    _shape("self_reference", "reject", "the object is the subject itself"),
)  # fmt: skip

CHANGE_RULES = (
    VerdictRule("type_violation", "reject", lambda r: r["type_conflict"] and not r["is_closing"],
                lambda r: f"{_new(r)} is not known as anything that can be the {r['relation_label']} of something."
                + (" Nothing is known of it but its label, which is spelt as none." if r["type_by_spelling"] else ""),
                (), lambda r: "soft" if r["type_by_spelling"] else "hard"),
    VerdictRule("not_current", "reject", lambda r: _is_change(r) and r["ends_past"],
                lambda r: f"{_slot(r)}: the statement {_new(r)} ended (P582) before this night, or is deprecated."),
    VerdictRule("not_yet_valid", "quarantine", lambda r: _is_change(r) and r["starts_future"],
                lambda r: f"{_slot(r)}: {_new(r)} begins (P580) after this night; hold it until then."),
    VerdictRule("redelivered_event", "merge_duplicate",
                lambda r: r["redelivered_of"] is not None or r["known_revision"] or r["fault"] == "redelivered_event",
                lambda r: f"{_slot(r)}: "
                + (r["fault_sentence"] or f"the same event came before ({_and(r, 'redelivered_of')})."),
                ("redelivered_of",)),
    VerdictRule("same_triple_again", "merge_duplicate", lambda r: r["same_triple_of"] is not None,
                lambda r: f"{_slot(r)}: {_new(r)} is already asserted by {r['same_triple_of']}.", ("same_triple_of",)),
    VerdictRule("reverted_same_night", "reject", lambda r: r["chain"] == "reverted",
                lambda r: f"{_slot(r)}: {_new(r)} was taken back within the night.", ("chain_of",)),
    VerdictRule("net_noop", "reject", lambda r: r["chain"] == "net_noop",
                lambda r: f"{_slot(r)}: the statement ends the night as it began.", ("chain_of",)),
    VerdictRule("superseded_within_night", "reject", lambda r: r["chain"] == "superseded",
                lambda r: f"{_slot(r)}: {_new(r)} was changed again within the night.", ("chain_of",)),
    VerdictRule("stale_revision", "reject", lambda r: r["stale"] and (_is_change(r) or r["op"] == "remove_statement"),
                lambda r: f"{_slot(r)}: revision {r['revision']} is older than the one already applied."),
    VerdictRule("inverse_conflict", "quarantine",
                lambda r: r["inverse_conflict"] is not None and (r["is_closing"] or r["live"])
                and r["contradicts"] is None and not r["contradicts_store"],
                lambda r: f"{_slot(r)}: this disagrees with the inverse statement in {_and(r, 'inverse_conflict')}.",
                ("inverse_conflict",), lambda r: "hard" if r["inverse_is_hard"] else "soft"),
    VerdictRule("absorbed_by_replacement", "merge_duplicate",
                lambda r: r["is_closing"] and r["replaced_by"] is not None,
                lambda r: f"{_slot(r)}: closes '{r['old_label']}', which {_and(r, 'replaced_by')} replaces.",
                ("replaced_by",)),
    VerdictRule("inverse_retraction", "accept",
                lambda r: r["is_closing"] and r["op"] == "remove_statement" and r["inverse_moved"] is not None,
                lambda r: f"{_slot(r)}: '{r['old_label']}' goes as its inverse has moved ({_and(r, 'inverse_moved')}).",
                ("inverse_moved",), "soft"),
    VerdictRule("released_retraction", "accept",
                lambda r: r["is_closing"] and "retraction_without_replacement" in r["waived"],
                lambda r: f"{_slot(r)}: '{r['old_label']}' is withdrawn; a person has released it without a replacement."),
    VerdictRule("retraction_without_replacement", "quarantine", lambda r: r["is_closing"],
                lambda r: f"{_slot(r)}: '{r['old_label']}' is withdrawn without a replacement to teach."),
    VerdictRule("no_change", "reject", lambda r: not _is_change(r),
                lambda r: f"{_slot(r)}: the value stays what it was; only references, qualifiers or rank changed."),
    VerdictRule("already_in_store", "merge_duplicate", lambda r: r["in_store"],
                lambda r: f"{_slot(r)}: the store already holds {_new(r)}."),
    VerdictRule("contradiction_within_night", "quarantine", lambda r: r["contradicts"] is not None,
                lambda r: f"{_slot(r)}: {_new(r)} and another value ({_and(r, 'contradicts')}) claim the same place.",
                ("contradicts",)),
    VerdictRule("contradiction_with_store", "quarantine", lambda r: r["contradicts_store"],
                lambda r: f"{_slot(r)}: {_new(r)} has no reference and the store holds another value."),
    VerdictRule("logical_conflict", "quarantine", lambda r: r["composite_conflict"] is not None,
                lambda r: f"{_slot(r)}: {_new(r)} does not fit {_and(r, 'composite_conflict')} (parents, spouse).",
                ("composite_conflict",), "soft"),
    VerdictRule("low_trust", "quarantine", lambda r: r["low_trust"],
                lambda r: f"{_slot(r)}: an unpatrolled new account replaces a value by {_new(r)} without reference.",
                (), "soft"),
)  # fmt: skip

READINESS_RULES = (
    VerdictRule("unknown_property", "quarantine", lambda r: not r["is_request"] and not r["property_known"],
                lambda r: f"Property {r['relation']} is not in the property table, so nothing tells how it behaves."),
    VerdictRule("no_template", "quarantine", lambda r: not r["is_request"] and not r["has_template"],
                lambda r: f"{_slot(r)}: no prompt template for {r['relation']}; add one to the templates file."),
)  # fmt: skip

ACCEPT_RULES = (
    VerdictRule("requested_erasure", "accept", lambda r: r["is_request"] and r["kind"] == "erase",
                lambda r: f"{_slot(r)}: asked to be forgotten."),
    VerdictRule("rollback_to_original", "supersede", lambda r: _replaces(r) and r["held_before"],
                lambda r: f"{_slot(r)}: goes back to {_new(r)}, which an earlier night had replaced."),
    VerdictRule("requested_change", "supersede", lambda r: r["is_request"] and _replaces(r),
                lambda r: f"{_slot(r)}: asked to become {_new(r)}."),
    VerdictRule("requested_fact", "accept", lambda r: r["is_request"],
                lambda r: f"{_slot(r)}: asked to be {_new(r)}."),
    VerdictRule("newer_than_earlier_night", "supersede",
                lambda r: _replaces(r) and r["changed_before"],
                lambda r: f"{_slot(r)}: {_new(r)} is newer than the value of an earlier night."),
    VerdictRule("old_value_ended", "supersede", lambda r: r["closing_of"] is not None and r["closed_by_end_date"],
                lambda r: f"{_slot(r)}: the old value ended ({_and(r, 'closing_of')}) and {_new(r)} follows.",
                ("closing_of",)),
    VerdictRule("preferred_rank_replaces_deprecated", "supersede",
                lambda r: r["closing_of"] is not None and r["rank"] == "preferred",
                lambda r: f"{_slot(r)}: {_new(r)} replaces the withdrawn value ({_and(r, 'closing_of')}).",
                ("closing_of",)),
    VerdictRule("newer_referenced_value", "supersede", _replaces,
                lambda r: f"{_slot(r)}: {_new(r)} replaces '{r['old_label'] or 'the old value'}' "
                f"({r['num_references']} references).", ("supported_by", "closing_of")),
    VerdictRule("consistent_with_symmetric", "accept", lambda r: r["supported_by"] is not None and r["symmetric"],
                lambda r: f"{_slot(r)}: {_new(r)} mirrors {_and(r, 'supported_by')}.", ("supported_by",)),
    VerdictRule("consistent_with_inverse", "accept", lambda r: r["supported_by"] is not None,
                lambda r: f"{_slot(r)}: {_new(r)} agrees with its inverse in {_and(r, 'supported_by')}.",
                ("supported_by",)),
    VerdictRule("additional_value_of_multi_valued_property", "accept", lambda r: r["slot_objects"] is not None,
                lambda r: f"{_slot(r)}: {_new(r)} joins the values that the store holds."),
    VerdictRule("new_fact", "accept", lambda r: True, lambda r: f"{_slot(r)}: {_new(r)} is new to the store."),
)  # fmt: skip

#: After the shape, before everything else: a text made to deceive is not weighed, it is looked at.
DOOR_RULES = (
    VerdictRule("suspicious", "quarantine", lambda r: r["suspicion"] is not None,
                lambda r: f"{_slot(r)}: {r['suspicion'].sentence}", ("suspicious_of",)),
)  # fmt: skip

RULES = SHAPE_RULES + FAULT_RULES + DOOR_RULES + CHANGE_RULES + READINESS_RULES + ACCEPT_RULES


def judge(row: Row) -> Verdict:
    """The verdict of the first rule that holds and is not waived; the last rule always does."""
    rule = next(rule for rule in RULES if rule.name not in row["waived"] and rule.applies(row))
    related = sorted({i for column in rule.evidence for i in ids(row[column])} - {row["record_id"]})
    name = row["suspicion"].rule if rule.name == "suspicious" else rule.name
    return Verdict(
        record_id=row["record_id"],
        verdict=rule.verdict,
        reason=rule.name,
        rule=name,
        confidence=rule.confidence(row) if callable(rule.confidence) else rule.confidence,
        sentence=rule.sentence(row),
        related=tuple(related),
        request_id=row["request_id"],
    )


def eq3_verdict(row: Row, rivals: tuple[str, ...]) -> Verdict:
    """Survey eq. 3: records that would fill one slot with different targets in one night all wait."""
    return Verdict(
        record_id=row["record_id"],
        verdict="quarantine",
        reason="contradiction_within_night",
        rule="one_target_per_slot",
        sentence=f"{_slot(row)}: {_new(row)} and the target of {', '.join(rivals)} cannot both be edited in one night.",
        related=rivals,
        request_id=row["request_id"],
    )


def denial_verdict(row: Row, others: tuple[str, ...]) -> Verdict:
    """Records of one night that would deny each other by an inverse or functional rule all wait."""
    return Verdict(
        record_id=row["record_id"],
        verdict="quarantine",
        reason="inverse_conflict",
        rule="no_mutual_denial",
        sentence=f"{_slot(row)}: {_new(row)} and {', '.join(others)} cannot both be true, so neither is edited.",
        related=others,
        request_id=row["request_id"],
    )


def noop_verdict(request: EditRequest, record_id: str | None = None) -> Verdict:
    """For a request whose answer the model already gives: recorded and skipped, never edited (decided at edit time)."""
    return Verdict(
        record_id=record_id or request.request_id,
        verdict="merge_duplicate",
        reason="already_known_to_model",
        rule="already_known_to_model",
        sentence=f"{request.subject} / {request.relation}: the model already answers "
        f"'{_short(request.target_new)}'; there is nothing to edit.",
        request_id=request.request_id,
    )
