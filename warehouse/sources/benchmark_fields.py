"""Fields of a benchmark's row: text, answers and questions in the spellings that the published files use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from warehouse.errors import SourceError
from warehouse.records import EditKind, ProbeKind

#: One question: kind, prompt, every accepted answer.
Question = tuple[ProbeKind, str, tuple[str, ...]]
#: What the files write for a blank that a model is to fill at the end of a prompt.
BLANK = "____"


@dataclass(frozen=True)
class Asked:
    """One edit that a row asks for, with the questions that the benchmark puts about it.

    `relation` is a property id where the format names one, else empty.
    """

    prompt: str
    subject: str
    new: str
    old: str | None = None
    rephrases: tuple[str, ...] = ()
    relation: str = ""
    subject_id: str = ""
    new_id: str = ""
    kind: EditKind = "modify"
    questions: tuple[Question, ...] = ()


def field(row: Mapping[str, Any], *names: str) -> Any:
    """The first of these fields that is there.

    Raises:
        SourceError: none is.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise SourceError(f"field {' or '.join(repr(name) for name in names)} is missing")


def text(row: Mapping[str, Any], *names: str) -> str:
    """A text that says something, without the space around it; a list of one text counts as that text.

    Raises:
        SourceError: missing, blank, of another type, or a list of several texts.
    """
    value = field(row, *names)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    name = next(name for name in names if row.get(name) is not None)
    if isinstance(value, list):
        raise SourceError(f"field '{name}' has {len(value)} entries; a request states one")
    if not isinstance(value, str):
        raise SourceError(f"field '{name}' is a {type(value).__name__}; expected text")
    if not value.strip():
        raise SourceError(f"field '{name}' is blank")
    return value.strip()


def maybe_text(row: Mapping[str, Any], *names: str) -> str | None:
    """The same, or None where the field is missing or blank.

    Raises:
        SourceError: of another type.
    """
    present = [name for name in names if row.get(name) not in (None, "", [])]
    if not present or (isinstance(row[present[0]], str) and not row[present[0]].strip()):
        return None
    return text(row, *present)


def texts(row: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    """A text or a list of texts, without blanks and repeats; nothing where the field is missing."""
    for name in names:
        if row.get(name) is not None:
            return answers(row[name], name)
    return ()


def entries(row: Mapping[str, Any], name: str) -> list[Any]:
    """A list of anything; nothing where the field is missing.

    Raises:
        SourceError: of another type.
    """
    value = row.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise SourceError(f"field '{name}' is a {type(value).__name__}; expected a list")
    return value


def answers(value: Any, where: str) -> tuple[str, ...]:
    """Every answer in `text`, a number, `[text]`, `[[alias]]` or `{value, aliases}`, in order, without blanks and repeats.

    Raises:
        SourceError: a part is of another type; `where` names the field.
    """
    return tuple(dict.fromkeys(_leaves(value, where)))


def _leaves(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, dict) and "value" in value:
        value = [value["value"], value.get("aliases") or []]
    if isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part, where)
    else:
        raise SourceError(f"field '{where}': the answer is a {type(value).__name__}; expected text or a list of texts")


def filled(prompt: str, subject: str) -> str:
    """A prompt with the subject in its `{}`."""
    return prompt.replace("{}", subject)


def cloze(prompt: str, where: str) -> str:
    """A prompt up to the blank at its end.

    Raises:
        SourceError: the blank is missing, or more than a full stop follows it.
    """
    before, blank, after = prompt.partition(BLANK)
    if not blank or after.strip(" ._?") != "":
        raise SourceError(f"field '{where}': expected a sentence that ends in a blank ({BLANK}); found {prompt[:80]!r}")
    return before.rstrip()


def spelled_in(prompt: str, subject: str) -> str:
    """The subject as the prompt spells it, where only capitals differ."""
    start = prompt.casefold().find(subject.casefold())
    found = prompt[start : start + len(subject)]
    return found if start >= 0 and found.casefold() == subject.casefold() else subject


def questions(value: Any, kind: ProbeKind, where: str) -> Iterator[Question]:
    """Questions of a list or an object with `prompt` and `ground_truth`, each a text or lists beside each other.

    Raises:
        SourceError: another shape.
    """
    for i, one in enumerate(value if isinstance(value, list) else [value]):
        place = f"{where}[{i}]" if isinstance(value, list) else where
        if not isinstance(one, dict):
            raise SourceError(f"field '{place}' is a {type(one).__name__}; expected an object with 'prompt' and 'ground_truth'")
        prompt, truth = field(one, "prompt", "loc", "question"), field(one, "ground_truth", "loc_ans", "answer", "answers")
        if isinstance(prompt, list) and len(prompt) > 1:
            if not isinstance(truth, list) or len(truth) != len(prompt):
                raise SourceError(f"field '{place}' has {len(prompt)} prompts, but not as many answers")
            pairs = list(zip(prompt, truth, strict=True))
        else:
            pairs = [(prompt, truth)]
        for asked, right in pairs:
            accepted = answers(right, place)
            if accepted:
                yield kind, text({"prompt": asked}, "prompt"), accepted
