"""A row of RippleEdits (Cohen et al., arXiv:2307.12976): the only format that names neither subject nor target.

Its edit is one sentence with ids. Where the sentence ends and the target begins is known from a question with the same
target, else from the sentence of the fact before, else from the last verb; the subject stands between the benchmark's fixed
words. An enlarged distribution that gives the labels is believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any

from warehouse.errors import SourceError
from warehouse.records import ProbeKind
from warehouse.sources.benchmark_fields import Asked, Question, answers, entries, field, maybe_text, text

#: The six criteria; the second spelling of the first is that of the authors' description.
AXES: dict[str, ProbeKind] = {
    "Relation_Specificity": "relation_specificity", "Relation_Specifity": "relation_specificity",
    "Logical_Generalization": "logical", "Subject_Aliasing": "alias", "Compositionality_I": "one_hop",
    "Compositionality_II": "one_hop", "Forgetfulness": "forgetfulness",
}  # fmt: skip
_VERB = re.compile(r".*\b(?:is|are|by|follows) ", re.S)
_NOUN = (
    r"(?:country of citizenship|place of (?:birth|death|burial)|date of (?:birth|death)|field of work"
    r"|head of (?:government|state)|[a-z -]+?)"
)
_HEAD = (
    r"(?:The (?:names? of the )?(?:[a-z -]+? which|number of children|award|" + _NOUN + r" (?:of|by|in))"
    r"(?: most likely to be performed in)? )?"
)
_TAIL = r"(?: (?:is associated with|is a member of|is part of|is the capital of|plays in|has|won))?"
_SENTENCE = re.compile(rf"{_HEAD}(?P<subject>\S.*?){_TAIL} (?:is followed by|is|are|follows)")


def read_ripple(row: Mapping[str, Any]) -> list[Asked]:
    """The edit of a row and the questions of its six criteria.

    Raises:
        SourceError: a field is missing or has another shape, or the sentence does not show its subject.
    """
    edit = row["edit"]
    sentence = text(edit, "prompt")
    asked = list(_questions(row))
    prompt, new = _split(sentence, edit, row)
    previous = edit.get("previous_fact") or edit.get("original_fact")
    old = None
    if isinstance(previous, dict):
        before = maybe_text(previous, "prompt")
        old = maybe_text(previous, "target", "target_label")
        if old is None and before is not None and before.startswith(prompt):
            old = before[len(prompt) :].strip().removesuffix(".") or None
    subject = maybe_text(edit, "subject", "subject_label")
    if subject is None:
        found = _SENTENCE.fullmatch(prompt)
        if found is None:
            raise SourceError(f"field 'edit.prompt': no subject is found in {prompt[:80]!r}; add 'edit.subject'")
        subject = found["subject"]
    return [
        Asked(
            prompt,
            subject,
            new,
            old,
            subject_id=maybe_text(edit, "subject_id") or "",
            new_id=maybe_text(edit, "target_id") or "",
            kind="modify" if old else "insert",
            questions=tuple(asked),
        )
    ]


def _queries(row: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(criterion, place for messages, query)."""
    for axis in AXES:
        for i, test in enumerate(entries(row, axis)):
            if not isinstance(test, dict):
                raise SourceError(f"field '{axis}[{i}]' is a {type(test).__name__}; expected an object with 'test_queries'")
            for name in names:
                for query in entries(test, name):
                    if not isinstance(query, dict):
                        raise SourceError(f"field '{axis}[{i}].{name}' has a {type(query).__name__}; expected an object")
                    yield axis, f"{axis}[{i}].{name}", query


def _questions(row: Mapping[str, Any]) -> Iterator[Question]:
    for axis, place, query in _queries(row, ("test_queries",)):
        # A query without answers in the benchmark's own data (no label was found for them) asks nothing.
        accepted = answers(query.get("answers") or [], place)
        if accepted:
            yield AXES[axis], text(query, "prompt", "phrase"), accepted


def _split(sentence: str, edit: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, str]:
    """(prompt, target) of the edit's sentence."""
    whole = sentence.removesuffix(".").rstrip()
    given = maybe_text(edit, "target", "target_label", "target_new")
    for label in filter(None, (given, *_labels(edit, row))):
        if whole.endswith(f" {label}") or sentence.endswith(f" {label}"):
            end = sentence if sentence.endswith(f" {label}") else whole
            return end[: -len(label)].rstrip(), label
    previous = edit.get("previous_fact")
    before = maybe_text(previous, "prompt") if isinstance(previous, dict) else None
    shared = whole
    if before is not None and before != sentence:
        shared = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(sentence, before, strict=False)))
    found = _VERB.match(shared)
    if found is None or not whole[found.end() :].strip():
        raise SourceError(f"field 'edit.prompt': no target is found in {sentence[:80]!r}; add 'edit.target'")
    return whole[: found.end()].rstrip(), whole[found.end() :].strip()


def _labels(edit: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    """Names of the edit's target, from the queries that have it as their only answer."""
    target = maybe_text(edit, "target_id")
    for _, place, query in _queries(row, ("test_queries", "condition_queries")):
        if target is not None and query.get("second_hop_target_ids", query.get("target_ids")) == [target]:
            yield from answers(field(query, "answers"), place)
