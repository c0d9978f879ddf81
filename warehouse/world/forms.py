"""Forms: the ways in which a model is asked for a fact. Each ends up as a text that names the subject and ends where the
answer begins, so that whoever runs, scores or edits a model sees texts only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import Literal

from pydantic import Field

from warehouse.digests import digest_of
from warehouse.records import EditRequest, Record
from warehouse.reference.wordings import Wordings

#: `plain`: the statement alone. `few_shot`: statements of other subjects before it. `few_shot_questions`: questions with
#: their answers before the question. `chat`: the question in the tokenizer's chat template, the answer begun.
FormName = Literal["plain", "few_shot", "few_shot_questions", "chat"]
FORMS: tuple[FormName, ...] = ("plain", "few_shot", "few_shot_questions", "chat")
#: Demonstrations before a few-shot prompt.
SHOTS = 3
#: A form is used where the base answers in it at least this share of what it knows in any form.
COMPETENT = 0.5
#: With fewer known facts a relation says nothing of its own: the rate over all relations counts.
FEW_KNOWN = 5
#: Wordings of each kind that measure an edit; the others are learnt from.
MEASURED = 4


class Demonstration(Record):
    """A fact of a calibration subject, shown before a few-shot prompt."""

    subject: str
    object: str


class FormRate(Record):
    """How a base fares in one form: of `asked` calibration facts of a relation (`""`: of all) `known` were answered rightly
    in any form, and `right` in this one."""

    relation: str
    form: FormName
    right: int
    known: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.known if self.known else 0.0


class Forms(Record):
    """How one base model is asked. `names` empty: nothing was measured, and it is asked plainly.

    `chat`: what the chat template writes before a question, and between it and the answer.
    """

    model_digest: str = ""
    names: tuple[FormName, ...] = ()
    chat: tuple[str, str] = ("", "")
    demonstrations: dict[str, tuple[Demonstration, ...]] = Field(default_factory=dict)
    rates: tuple[FormRate, ...] = ()

    def competent(self, relation: str) -> tuple[FormName, ...]:
        """The forms to ask a relation in, the best first; never empty."""
        overall = {r.form: r for r in self.rates if not r.relation}
        own = {r.form: r for r in self.rates if r.relation == relation and r.known >= FEW_KNOWN}
        found = {name: rate for name in self.names if (rate := own.get(name) or overall.get(name)) is not None}
        # Without rates somebody has chosen the form.
        good: list[FormName] = [n for n in self.names if not self.rates or (n in found and found[n].share >= COMPETENT)]
        # Of equals the later in the list, whose answers end more surely.
        good.sort(key=lambda name: (-found[name].share if name in found else 0, -FORMS.index(name)))
        shown: tuple[FormName, ...] = tuple(
            name for name in good if relation in self.demonstrations or not name.startswith("few_shot")
        )
        return shown or FORMS[:1]

    def describe(self) -> str:
        """One line: the share of what the base knows that it answers in each form."""
        return ", ".join(f"{r.form} {r.share:.2f} of {r.known} known" for r in self.rates if not r.relation) or "plain"


#: Asked plainly, without having been measured.
PLAIN = Forms()


def split_wordings(
    subject: str, relation: str, count: int, kind: str = "prompts", kept_out: Sequence[int] = ()
) -> tuple[list[int], list[int]]:
    """(learnt from, measured) of the wordings 1 to `count` - 1, drawn for each subject by hash; 0 is the edit's own.

    Measured ones stand in the order in which they are to be asked.

    Args:
        subject: id, or label where there is none.
        kept_out: those that are measured before any other, such as templates that no training text used.
    """
    others = sorted(range(1, count), key=lambda i: digest_of("wording", kind, subject, relation, i))
    others.sort(key=lambda i: i not in kept_out)
    number = min(MEASURED, (len(others) + 1) // 2)
    return sorted(others[number:]), others[:number]


@dataclass(frozen=True)
class Asker:
    """Puts facts and edit requests into the forms of a model."""

    forms: Forms = PLAIN
    wordings: Mapping[str, Wordings] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        return not self.forms.names

    def ask(self, relation: str, subject: str, plain: str) -> list[str]:
        """The canonical prompts for a fact, one in each competent form; `plain` where the model is asked plainly."""
        known = self.wordings.get(relation)
        if self.is_plain or known is None:
            return [plain]
        return [self.prompt(form, known, 0, subject) for form in self.forms.competent(relation)]

    def prompt(self, form: FormName, wordings: Wordings, index: int, subject: str) -> str:
        """One wording in one form; `index` counts questions for the forms that ask, statements for the others."""
        if form == "plain":
            return wordings.statement(index, subject)
        if form == "few_shot":
            return self._shown(wordings) + wordings.statement(index, subject)
        question = wordings.question(index, subject)
        if form == "few_shot_questions":
            return f"{self._answered(wordings)}Question: {question}\nAnswer:"
        before, after = self.forms.chat
        return f"{before}{question}{after}{wordings.statement(0, subject)}"

    def state(self, request: EditRequest) -> EditRequest:
        """The request as this model is edited and asked: its prompt in the first form, the others beside it.

        A request in words of its own keeps them as its prompt; one whose relation has no wordings stays as it is.
        """
        known = self.wordings.get(request.relation)
        if self.is_plain or known is None:
            return request
        subject, key = request.subject, request.subject_id or request.subject
        forms = self.forms.competent(request.relation)
        canonical = [self.prompt(form, known, 0, subject) for form in forms]
        is_own = request.prompt != known.statement(0, subject)
        drawn = {
            kind: split_wordings(key, request.relation, len(getattr(known, kind)), kind) for kind in ("statements", "questions")
        }
        learnt: list[list[str]] = []
        measured: list[str] = []
        for form in forms:
            learn, measure = drawn[_kind(form)]
            learnt.append([self.prompt(form, known, i, subject) for i in learn[:MEASURED]])
            measured += [self.prompt(form, known, i, subject) for i in measure]
        prompt, also = (request.prompt, canonical) if is_own else (canonical[0], canonical[1:])
        poor = [] if "plain" in forms else [known.statement(i, subject) for i in drawn["statements"][1]]
        own = [p for p in request.rephrases if is_own and p not in (*also, *poor)]
        return request.model_copy(
            update={
                "prompt": prompt,
                "also": tuple(p for p in also if p != prompt),
                "wordings": tuple(p for row in zip_longest(*learnt) for p in row if p is not None),
                "rephrases": tuple(dict.fromkeys([*own, *measured])),
                "carry_over": tuple(poor),
            }
        )

    @property
    def slicing(self) -> Callable[[str], str] | None:
        """`form_of`, where there are forms to have slices of."""
        return None if self.is_plain else self.form_of

    def form_of(self, prompt: str) -> str:
        """The form that a prompt stands in, by what it begins with; empty where the model is asked plainly."""
        if self.is_plain:
            return ""
        if self.forms.chat[0] and prompt.startswith(self.forms.chat[0]):
            return "chat"
        return next((form for start, form in self._starts if prompt.startswith(start)), "plain")

    @cached_property
    def _starts(self) -> list[tuple[str, FormName]]:
        shown = [self.wordings[r] for r in self.forms.demonstrations if r in self.wordings]
        starts: list[tuple[str, FormName]] = [(self._answered(w), "few_shot_questions") for w in shown]
        return starts + [(self._shown(w), "few_shot") for w in shown]

    def _shown(self, wordings: Wordings) -> str:
        """Statements of the demonstrations, in the first wordings of the relation."""
        facts = self.forms.demonstrations.get(wordings.relation, ())
        return "".join(f"{wordings.statement(i, d.subject)} {d.object}. " for i, d in enumerate(facts))

    def _answered(self, wordings: Wordings) -> str:
        facts = self.forms.demonstrations.get(wordings.relation, ())
        return "".join(f"Question: {wordings.question(i, d.subject)}\nAnswer: {d.object}\n\n" for i, d in enumerate(facts))


#: Every fact is asked in the prompt that it has.
PLAINLY = Asker()


def told(prompt: str, most: int = 100) -> str:
    """A prompt as people are shown it: its end, where the question is; demonstrations would fill the page."""
    text = " ".join([line for line in prompt.splitlines() if line.strip()][-2:])
    return text if len(text) <= most else f"... {text[-most:]}"


def _kind(form: FormName) -> str:
    return "questions" if form in ("few_shot_questions", "chat") else "statements"
