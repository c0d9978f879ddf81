"""Turn a change into an edit request: the canonical prompt of its property, and paraphrases that were never trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from warehouse.digests import digest_of
from warehouse.records import EditKind, EditRequest, Record
from warehouse.reference.build import held_out_templates
from warehouse.reference.world import UNKNOWN, Template
from warehouse.world.changes import Change, Value
from warehouse.world.forms import split_wordings

#: (subject_id, relation) -> indices of the templates that no training text used for this slot.
HeldOut = Callable[[str, str], Sequence[int]]


class Unverbalised(Record):
    """A change that no prompt can state, with the reason for machines and a sentence for people."""

    record_id: str
    reason: str
    sentence: str


def verbalise(
    change: Change, templates: Mapping[str, Template], held_out: HeldOut = held_out_templates
) -> EditRequest | Unverbalised:
    """The edit request of a change; its prompt holds the subject and ends where the target begins.

    Insert where nothing was there before, modify where a value is replaced, erase (towards the word `unknown`) where
    a value is withdrawn: a removed statement, or rank deprecated without a new value. Where the store knows an old
    value that the record does not name, give it as `change.old` first.
    """
    problem = _problem(change, templates)
    if problem is not None:
        return Unverbalised(record_id=change.record_id, reason=problem[0], sentence=problem[1])
    target = change.new
    kind: EditKind = "erase" if _withdraws(change) else "insert" if change.old is None else "modify"
    old = change.old if change.old is not None else target if kind == "erase" else None
    return state(
        templates[change.relation],
        record_id=change.record_id,
        subject_id=change.subject.id,
        subject=change.subject.label,
        target=None if kind == "erase" else target,
        old=old.label if old is not None and old.type == "item" and old.label else None,
        kind=kind,
        held_out=held_out,
    ).model_copy(update={"source": change.source, "received_at": change.received_at})


def state(
    template: Template,
    *,
    record_id: str,
    subject_id: str,
    subject: str,
    target: Value | None,
    old: str | None,
    kind: EditKind,
    held_out: HeldOut = held_out_templates,
) -> EditRequest:
    """A request from its parts; `target` None asks for erasure. The same parts give the same `request_id`."""
    label = UNKNOWN if target is None else target.label
    wordings = _measured(template, subject_id, subject, held_out)
    return EditRequest(
        request_id=f"rq-{digest_of(record_id, subject_id, template.relation, label)[:16]}",
        prompt=template.prompt(0, subject),
        subject=subject,
        relation=template.relation,
        target_new=label,
        target_true=old,
        rephrases=tuple(template.prompt(i, subject) for i in wordings),
        subject_id=subject_id,
        target_new_id="" if target is None else target.id,
        kind=kind,
    )


def _measured(template: Template, subject_id: str, subject: str, held_out: HeldOut) -> list[int]:
    """Indices of the templates that an edit of the slot is measured with; an editor may learn from the others.

    First those that no training text used for the slot.
    """
    unseen = held_out(subject_id, template.relation)
    _, measured = split_wordings(subject_id or subject, template.relation, len(template.prompts), kept_out=unseen)
    return measured


def with_rephrases(
    request: EditRequest, templates: Mapping[str, Template], held_out: HeldOut = held_out_templates
) -> EditRequest:
    """A user's request with other wordings where he gave none: GR asks them.

    They are those templates of the relation that an edit of the slot is measured with; a relation without any is reworded
    from the request's own prompt. A wording of KnowEdit is left as its authors gave it.
    """
    if request.rephrases or request.relation.startswith("text:"):
        return request
    template = templates.get(request.relation)
    if template is None:
        return request.model_copy(update={"rephrases": reworded(request.prompt, request.subject)})
    # The canonical wording stands in where the request's own is one of them.
    for wordings in (_measured(template, request.subject_id, request.subject, held_out), (0,)):
        prompts = tuple(template.prompt(i, request.subject) for i in wordings)
        if others := tuple(prompt for prompt in prompts if prompt != request.prompt):
            return request.model_copy(update={"rephrases": others})
    return request.model_copy(update={"rephrases": reworded(request.prompt, request.subject)})


def reworded(prompt: str, subject: str) -> tuple[str, ...]:
    """Three other prompts with the same answer, from a prompt's own form."""
    asks = prompt.rstrip().endswith("?")
    match = None if asks else _OF.fullmatch(prompt.replace(subject, _MARK, 1))
    found = []
    if match:
        what, verb = match.groups()
        found = [f"{subject}'s {what} {verb}", f"Question: What {verb} the {what} of {subject}? Answer:"]
    # Words before a prompt leave its answer what it was.
    found += [frame.format(prompt) for frame in (_QUESTION_FRAMES if asks else _FRAMES)]
    return tuple(found[:_MOST_REWORDED])


_MARK = "\x00"
_OF = re.compile(f"The ([^{_MARK}]+) of {_MARK} (is|was|are|were)")
_FRAMES = ("It is well known: {}", "Here is a fact. {}", "As the encyclopedia says: {}")
_QUESTION_FRAMES = ("Question: {} Answer:", "Here is a question. {}", "Please answer: {}")
_MOST_REWORDED = 3


def _withdraws(change: Change) -> bool:
    if change.op == "remove_statement":
        return True
    return change.op == "set_rank" and change.rank == "deprecated" and change.new is None


def _problem(change: Change, templates: Mapping[str, Template]) -> tuple[str, str] | None:
    """(reason, sentence) of the first thing that stands against stating the change; reasons as in the policy."""
    name = f"record {change.record_id}"
    if change.op in ("set_label", "set_description"):
        return (
            "not_a_statement",
            f"{name} changes a {change.op.removeprefix('set_')}, which is no fact about the world.",
        )
    if change.relation not in templates:
        return "unknown_property", f"{name}: no template states {change.relation} ({change.relation_label})."
    if not change.subject.label.strip():
        return "empty_label", f"{name}: the subject {change.subject.id} has no label to put into a prompt."
    if _withdraws(change):
        return None
    if change.new is None:
        return "no_value", f"{name} ({change.op}) gives no new value for {change.relation}."
    if change.new.type == "none":
        return (
            "no_value",
            f"{name} sets {change.relation} to {change.new.snaktype or 'no value'}, which no text states.",
        )
    if change.new.type != "item":
        return "unsupported_datatype", f"{name}: the new value is a {change.new.type}, not an item."
    if not change.new.label.strip():
        return "empty_label", f"{name}: the new value {change.new.id} has no label to be the answer."
    return None
