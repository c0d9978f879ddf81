"""In which forms a base is asked: measured on calibration facts, kept in the home."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from checks.predictor import Answer, Question
from editors.asking.chat import chat_frame
from editors.model import EditableModel
from tasks.serving import forms as serving_forms
from tasks.serving.forms import CalibrationSlot, asker_of, demonstrations_of, measure_forms
from tasks.serving.known import ask_known, known_table
from tasks.settings import Settings
from tasks.workspace import warehouse
from tests.support import tiny_model, tiny_tokenizer
from warehouse.reference.general.world import general_facts, wordings
from warehouse.world.general import general_slots

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SLOTS = {"P36": [CalibrationSlot(f"Land {i}", (f"City {i}",)) for i in range(12)]}


class Knowing:
    """A model that answers every fact in prompts of which `knows` is true."""

    base_digest = "knowing"
    patches: tuple[object, ...] = ()

    def __init__(self, knows: Callable[[str], bool]) -> None:
        self.tokenizer, self.knows, self.asked = tiny_tokenizer(), knows, list[Question]()

    def score(self, questions: Sequence[Question]) -> list[Answer]:
        self.asked += questions
        return [Answer(self.knows(q.prompt), 0.0, -1.0, 0.0, "") for q in questions]


def _model(knows: Callable[[str], bool]) -> Any:
    return cast(EditableModel, Knowing(knows))


def test_a_base_is_asked_in_the_forms_that_it_answers() -> None:
    found = measure_forms(_model(lambda prompt: "Answer:" in prompt), wordings(), SLOTS)
    assert found.names == ("few_shot_questions",)
    assert found.competent("P36") == ("few_shot_questions",)


def test_a_base_that_knows_nothing_is_asked_plainly() -> None:
    assert measure_forms(_model(lambda _: False), wordings(), SLOTS).names == ()


def test_a_chosen_form_is_not_measured() -> None:
    model = _model(lambda _: False)
    found = measure_forms(model, wordings(), SLOTS, "few_shot")
    assert (found.competent("P36"), model.asked) == (("few_shot",), [])


def test_demonstrations_have_different_answers() -> None:
    slots = [CalibrationSlot(s, (o,)) for s, o in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "z"))]
    assert [(d.subject, d.object) for d in demonstrations_of(slots)] == [("a", "x"), ("c", "y"), ("d", "z")]


def test_demonstrations_are_no_facts_that_are_asked() -> None:
    model = _model(lambda _: True)
    found = measure_forms(model, wordings(), SLOTS)
    shown = {d.object for d in found.demonstrations["P36"]}
    assert not shown & {q.answer for q in model.asked}


def test_the_chat_template_is_told_as_what_stands_around_a_question() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    assert chat_frame(tokenizer) == ("<user>", "<assistant>")


def test_a_template_that_cannot_be_run_is_no_form() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert chat_frame(tokenizer) is None


def test_the_embedded_model_is_asked_plainly_and_nothing_is_measured(tmp_path: Path) -> None:
    assert ask_known(Settings(home=tmp_path)).is_plain
    assert known_table(Settings(home=tmp_path)) == []


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home whose base is a real tiny model under another name than the embedded one."""
    model = tiny_model("llama")
    monkeypatch.setattr("tasks.serving.known.base_model", lambda _: model)
    return Settings.model_validate({"home": tmp_path, "model": {"name": "another"}})


def test_what_was_measured_is_read_and_not_measured_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    first = asker_of(settings, model)
    serving_forms._KNOWN.clear()
    monkeypatch.setattr(serving_forms, "measure_forms", lambda *_: pytest.fail("measured again"))
    assert asker_of(settings, model).forms == first.forms


def test_each_known_fact_is_asked_once(settings: Settings) -> None:
    ask_known(settings, each=2)
    model = tiny_model("llama")
    with warehouse(settings) as wh:
        assert general_slots(wh, model.base_digest, 2) == []
        assert len(general_slots(wh, model.base_digest, 3)) == len({f.relation for f in general_facts()})
    assert sum(row.asked for row in known_table(settings)) == 2 * len({f.relation for f in general_facts()})
