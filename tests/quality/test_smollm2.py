"""The real model is the recorded one, and answers. Needs `make real`."""

from __future__ import annotations

import pytest

from checks.predictor import Question
from editors.asking.chat import chat_frame
from editors.base import Corpus, TrainingEdit
from editors.model import EditableModel
from editors.presets import load_editor
from tasks.serving.fetch import MODELS, weights_digest
from tests.real import NEEDS_REAL, REAL
from warehouse.records import EditBatch, EditRequest
from warehouse.reference.general.world import wordings
from warehouse.world.forms import Asker, Demonstration, Forms

pytestmark = NEEDS_REAL
#: Weights and configuration: what tables and presets of this model are keyed by.
BASE_DIGEST = "7d0456aa0572a6981392d5d014aa1c438f2e8062dfd958cd1827749f41c9e948"


@pytest.fixture(scope="module")
def real() -> EditableModel:
    return EditableModel.from_pretrained(str(REAL))


def test_its_weights_and_its_configuration_are_the_recorded_ones(real: EditableModel) -> None:
    assert weights_digest(real) == MODELS["smollm2"].weights
    assert real.base_digest == BASE_DIGEST


def test_it_says_the_capital_of_france(real: EditableModel) -> None:
    assert real.generate(["The capital of France is"], 1) == [" Paris"]


def test_its_digits_are_split_one_by_one_as_it_was_trained(real: EditableModel) -> None:
    """transformers does not know this tokenizer's way to split (`smollm`); without tokens of two digits it cannot matter."""
    assert not [token for token in real.tokenizer.get_vocab() if len(token) > 1 and any(c.isdecimal() for c in token)]
    assert len(real.tokenizer("1999").input_ids) == 4


@pytest.fixture(scope="module")
def asker(real: EditableModel) -> Asker:
    """Few-shot questions, chat and few-shot statements, with three demonstrations of the relation."""
    frame = chat_frame(real.tokenizer)
    assert frame is not None
    shown = (("Norway", "Oslo"), ("Kenya", "Nairobi"), ("Peru", "Lima"))
    forms = Forms(
        model_digest=real.base_digest,
        names=("few_shot_questions", "chat", "few_shot"),
        chat=frame,
        demonstrations={"P36": tuple(Demonstration(subject=s, object=o) for s, o in shown)},
    )
    return Asker(forms, wordings())


def _changed(asker: Asker, subject: str, old: str, new: str) -> EditRequest:
    stated = EditRequest(
        request_id=f"real-{subject}",
        prompt=wordings()["P36"].statement(0, subject),
        subject=subject,
        relation="P36",
        target_new=new,
        target_true=old,
        subject_id=subject,
    )
    return asker.state(stated)


def test_an_edit_holds_in_every_form_and_leaves_a_neighbour(real: EditableModel, asker: Asker) -> None:
    """The default editor with the numbers that were found for this model, a small bank, one edit (a minute of one core)."""
    known = [("Italy", "Rome"), ("Egypt", "Cairo"), ("Sweden", "Stockholm"), ("Cuba", "Havana"), ("Greece", "Athens")]
    lessons = tuple(TrainingEdit(_changed(asker, s, o, "Madrid")) for s, o in known)
    corpus = Corpus(tuple(f"{wordings()['P36'].statement(1, s)} {o}." for s, o in known), lessons)
    editor = load_editor("ledger", real, {"bank_tokens": 200, "key_wordings": 6})
    prepared = editor.prepare(real, corpus)
    request = _changed(asker, "France", "Paris", "Madrid")
    neighbours = [Question(p, "Tokyo") for p in asker.ask("P36", "Japan", "")]
    knew = [a.exact for a in real.score(neighbours)]
    real.push(editor.edit(real, EditBatch(batch_id="real", requests=(request,)), prepared))
    try:
        own = real.score([Question(p, "Madrid") for p in (request.prompt, *request.also)])
        reworded = real.score([Question(p, "Madrid") for p in request.rephrases])
        assert [a.exact for a in own] == [True] * 3
        assert sum(a.exact for a in reworded) >= 0.8 * len(reworded)
        assert [a.exact for a in real.score(neighbours)] == knew and any(knew)
    finally:
        real.rollback(0)
