"""A model with slots as a predictor that asks nothing twice: what a text's open slots leave as it was is taken, not computed.

The slots read states of the base at one site, and what they add depends on these and on themselves alone. So an answer is a
function of the base and of the view that its text has of the slots: which open at which of its tokens, how far, and what
each adds. A text that opens none is answered by the base. Every answer is asked in steady passes (`editors.asking.steady`),
so a kept one and one that is asked again are equal to the bit on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from editors.asking.calls import Call, Runner
from editors.asking.runner import PlainRunner
from editors.asking.scoring import likelihoods_of, next_log_probs_of, score_rows
from editors.asking.steady import SteadyRunner
from editors.asking.tokens import EncodedRow, continuation_of
from editors.model import EditableModel
from editors.patches.slots import SlotBook, SlotGates, SlotPatch, slots_name
from editors.proof.answers import answer_key
from editors.proof.folder import Proofs
from editors.proof.states import BASE, NamedGates, Opening, name_of, row_name
from warehouse.questions import Answer, Question
from warehouse.records import checkpoint_id

#: Start in the key of a text's likelihood, which no answer has: a continuation begins behind a first token.
LIKELIHOOD = 0
_Found = tuple[list[Answer], frozenset[int]]


def slot_site(model: EditableModel) -> str | None:
    """The one module whose slots are all that the model wears; None where it wears anything else, or nothing."""
    sites = {patch.site if isinstance(patch, SlotPatch) else None for patch in model.patches}
    return next(iter(sites)) if len(sites) == 1 else None


@dataclass
class Counts:
    """How many answers were taken as proved, and how many were asked of the model."""

    proved: int = 0
    asked: int = 0


@dataclass(frozen=True)
class _Seen:
    """A row that is asked: its name, and its view where its states are known."""

    name: bytes
    view: bytes | None


class Proved:
    """A `checks.Predictor`: the model with its slots, or with `base` the model under them.

    Args:
        model: wears slots of one site and nothing else (`slot_site`).
        proofs: what is kept of its base; None: every question is asked, in the same passes.
        alone: each row runs by itself (`asked_alone`).
    """

    def __init__(
        self, model: EditableModel, site: str, proofs: Proofs | None, *, base: bool = False, alone: bool = False
    ) -> None:
        self._model, self._site, self._proofs, self._base, self._alone = model, site, proofs, base, alone
        self.counts = Counts()
        self._viewed: tuple[tuple[str, int], NamedGates, dict[bytes, list[Opening]]] | None = None

    @property
    def digest(self) -> str:
        return checkpoint_id(self._model.base_digest, []) if self._base else self._model.digest

    def without_proofs(self) -> Proved:
        """The same state, of which every question is asked."""
        return Proved(self._model, self._site, None, base=self._base, alone=self._alone)

    # ------------------------------------------------------------ the Predictor

    def score(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions."""
        stops, tokenizer = self._model.stops, self._model.tokenizer
        return self._answers(_call_of(questions), None, lambda runner, part: score_rows(runner, part, stops, tokenizer))

    def kept(self, questions: Sequence[Question]) -> dict[Question, Answer]:
        """The answers that `score` would take as proved; nothing is asked."""
        rows = self._runner([]).encode(_call_of(questions))
        found = zip(questions, self._held(rows, self._seen(rows), [row.start for row in rows]), strict=True)
        return {question: answer for question, answer in found if answer is not None}

    def log_likelihoods(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """(sum of token log-probabilities in nats, number of tokens) of each text."""

        def ask(runner: Runner, part: Call) -> _Found:
            return [Answer(False, 0.0, total, 0.0, "", tokens) for total, tokens in likelihoods_of(runner, part)], frozenset()

        found = self._answers(Call(("",) * len(texts), tuple(texts)), LIKELIHOOD, ask)
        return [(answer.log_prob, answer.num_tokens) for answer in found]

    def next_token_log_probs(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """(prompts, vocab) log-probabilities of the token after each prompt; kept in memory alone, which one view shares."""
        call = Call(tuple(prompts), ("",) * len(prompts))
        rows = self._runner([]).encode(call)
        seen = self._seen(rows)
        held = {} if self._proofs is None else self._proofs.next_log_probs
        missing = [i for i, row in enumerate(seen) if row.view is None or (row.name, row.view) not in held]
        fresh: dict[int, NDArray[np.float32]] = {}
        for numbers, part in self._parts(call, seen, missing):
            with self._state():
                fresh |= zip(numbers, next_log_probs_of(part, call.select(numbers)), strict=True)
        again = dict(zip(missing, self._seen([rows[i] for i in missing]), strict=True))
        for i, row in again.items():
            if row.view is not None:
                held[row.name, row.view] = fresh[i]
        self._count(len(prompts), len(missing))
        return np.stack([fresh[i] if i in fresh else held[row.name, row.view or BASE] for i, row in enumerate(seen)])

    def generate(self, prompts: Sequence[str], max_new_tokens: int, *, sample: bool = False, seed: int = 0) -> list[str]:
        """Continuations without the prompt; free text is asked as ever: nobody knows beforehand what it will name."""
        with self._state():
            return self._model.generate(prompts, max_new_tokens, sample=sample, seed=seed)

    # ------------------------------------------------------------ asked or proved

    def _answers(self, call: Call, start: int | None, ask: Callable[[Runner, Call], _Found]) -> list[Answer]:
        """What is kept, and what `ask` says of the rest, which is kept then.

        Args:
            start: in the keys of what is asked; None: where each row's continuation starts.
        """
        rows = self._runner([]).encode(call)
        seen, starts = self._seen(rows), [row.start if start is None else start for row in rows]
        found = self._held(rows, seen, starts)
        missing = [i for i, answer in enumerate(found) if answer is None]
        untold: set[int] = set()
        for numbers, runner in self._parts(call, seen, missing):
            with self._state():
                answers, generated = ask(runner, call.select(numbers))
            untold |= {numbers[i] for i in generated}
            for i, answer in zip(numbers, answers, strict=True):
                found[i] = answer
        if self._proofs is not None and missing:
            for i, one in zip(missing, self._seen([rows[i] for i in missing]), strict=True):
                answer = found[i]
                # What was generated may have named what no token of the row does.
                if answer is not None and one.view is not None and i not in untold:
                    self._proofs.answers.put(answer_key(one.name, starts[i], one.view), answer)
        self._count(len(rows), len(missing))
        return [answer for answer in found if answer is not None]

    def _held(self, rows: Sequence[EncodedRow], seen: Sequence[_Seen], starts: Sequence[int]) -> list[Answer | None]:
        if self._proofs is None:
            return [None] * len(rows)
        held = self._proofs.answers
        return [
            None if one.view is None else held.get(answer_key(one.name, start, one.view))
            for one, start in zip(seen, starts, strict=True)
        ]

    def _parts(self, call: Call, seen: Sequence[_Seen], missing: Sequence[int]) -> Iterator[tuple[list[int], SteadyRunner]]:
        """What is to be asked, in two parts: rows whose open slots are known are asked with these alone."""
        for known in (True, False):
            numbers = [i for i in missing if (seen[i].view is not None) is known]
            if numbers:
                names = [seen[i].name for i in numbers]
                yield numbers, self._runner(names, self._only(names) if known and not self._base else None)

    def _only(self, names: Sequence[bytes]) -> SlotGates | None:
        """The gates that open in some rows; what these do at a token is the same beside the others."""
        book = self._book
        if book is None or not book.slots:
            return None
        _, opened = self._openings(book)
        slots = sorted({slot for name in names for _, slot, _ in opened.get(name, ())})
        return book.gates.only(torch.tensor(slots, dtype=torch.long, device=book.gates.low.device))

    def _runner(self, names: Sequence[bytes], shown: SlotGates | None = None) -> SteadyRunner:
        """What asks the rows of these names, and keeps the states that it meets."""
        book, states = self._book, None if self._proofs is None else self._proofs.states

        @contextmanager
        def around(numbers: Sequence[int]) -> Iterator[None]:
            seen: list[torch.Tensor] = []
            undo = self._model.hook(self._site, lambda _module, inputs, _out: seen.append(inputs[0]), by_token=True)
            if book is not None:
                book.shown = shown
            try:
                yield
            finally:
                undo()
                if book is not None:
                    book.shown = None
            if states is not None:
                for number, found in zip(numbers, seen[0], strict=False):
                    states.put(names[number], found)

        return SteadyRunner(self._model, PlainRunner(self._model), alone=self._alone, around=around)

    @contextmanager
    def _state(self) -> Iterator[None]:
        """The state that is asked; the base is the model whose slots keep shut."""
        book = self._book
        with torch.inference_mode(), book.silenced() if book is not None and self._base else nullcontext():
            yield

    def _count(self, answers: int, asked: int) -> None:
        self.counts.asked += asked
        self.counts.proved += answers - asked

    # ------------------------------------------------------------ views

    @property
    def _book(self) -> SlotBook | None:
        return self._model.memories.get(slots_name(self._site))

    def _seen(self, rows: Sequence[EncodedRow]) -> list[_Seen]:
        names, book = [row_name(row.ids) for row in rows], self._book
        if self._base or book is None or not book.slots:
            return [_Seen(name, BASE) for name in names]
        if self._proofs is None:
            return [_Seen(name, None) for name in names]
        states = self._proofs.states
        named, opened = self._openings(book)
        return [_Seen(name, _view(named, opened.get(name, ())) if name in states else None) for name in names]

    def _openings(self, book: SlotBook) -> tuple[NamedGates, dict[bytes, list[Opening]]]:
        assert self._proofs is not None
        states, key = self._proofs.states, (self._model.digest, self._proofs.states.taken)
        if self._viewed is None or self._viewed[0] != key:
            named = self._viewed[1] if self._viewed and self._viewed[0][0] == key[0] else NamedGates.of(book.gates)
            self._viewed = (key, named, states.openings(named))
        return self._viewed[1:]


def _call_of(questions: Sequence[Question]) -> Call:
    return Call(tuple(q.prompt for q in questions), tuple(continuation_of(q.answer) for q in questions))


def _view(named: NamedGates, opened: Sequence[Opening]) -> bytes:
    """The name of what a row sees of the slots, in the order in which it is added."""
    parts = [
        token.to_bytes(4, "little") + share.to_bytes(4, "little", signed=True) + named.values[slot]
        for token, slot, share in opened
    ]
    return name_of(*parts) if parts else BASE
