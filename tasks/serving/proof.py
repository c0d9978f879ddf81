"""Base and edited model as an evaluation asks them: by proof where the model wears the ledger's slots, else as they are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType

from checks.predictor import Predictor
from editors.model import EditableModel
from editors.patches.rivals import Rivals
from editors.patches.slots import Slot, SlotBook, slots_name
from editors.proof.folder import Proofs, asked_alone, kept_proofs, proof_folder
from editors.proof.kept_rivals import keep_rivals, rivals_file
from editors.proof.proved import Proved, slot_site
from editors.views import AtDepth
from tasks.settings import Settings
from warehouse.questions import Answer, Question


class Asking(AbstractContextManager["Asking"]):
    """What is kept of a base, open for the length of a block; more than one model of that base may be asked in it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = ExitStack()
        self._kept: dict[str, Proofs | None] = {}
        self._made: list[Proved] = []
        self._rivals: dict[Path, Rivals[Slot]] = {}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
        for path, rivals in self._rivals.items():
            keep_rivals(path, rivals)

    def states(self, model: EditableModel) -> tuple[Predictor, Predictor]:
        """The base under the model, and the model; answers that follow from kept ones are not asked."""
        site = slot_site(model)
        book: SlotBook | None = None if site is None else model.memories.get(slots_name(site))
        if site is None or book is None:
            return AtDepth(model, 0), model
        root, limit = self._settings.proofs, self._settings.probes.proof_bytes
        name = proof_folder(root, model, site).name
        if name not in self._kept:
            self._kept[name] = self._stack.enter_context(kept_proofs(root, model, site, limit))
        proofs, alone = self._kept[name], asked_alone(model, book)
        if limit:
            self._rivals[rivals_file(root, model, site)] = book.rivals
        base, edited = (Proved(model, site, proofs, base=is_base, alone=alone) for is_base in (True, False))
        self._made += [base, edited]
        return base, edited

    def differing(self, model: EditableModel, questions: Sequence[Question]) -> list[tuple[Question, Answer, Answer]]:
        """(question, kept answer, what the model says) where a kept answer is not what is said when it is asked again."""
        found: list[tuple[Question, Answer, Answer]] = []
        for state in self.states(model):
            if isinstance(state, Proved):
                kept = state.kept(questions)
                said = zip(kept.items(), state.without_proofs().score(list(kept)), strict=True)
                found += [(question, was, now) for (question, was), now in said if was != now]
        return found

    @property
    def told(self) -> dict[str, str]:
        """How many answers were proved and how many were asked, for a report; nothing where nothing could be proved."""
        if not self._made:
            return {}
        proved, asked = (sum(getattr(one.counts, name) for one in self._made) for name in ("proved", "asked"))
        return {"answers_proved": str(proved), "answers_asked": str(asked)}
