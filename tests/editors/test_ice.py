"""ICE: what is stated, where, and which statement wins."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from editors.base import NOTHING
from editors.errors import InvalidRequest
from editors.in_context.ice import InContextConfig, InContextEditing
from editors.model import EditableModel
from editors.patches.prompt import MEMORY, FactStore, PromptPatch, StatedFact
from editors.session import batch_of
from tests.support import request
from warehouse.records import EditRequest

EDITOR = InContextEditing(InContextConfig())


def stated(asked: EditRequest, **values: Any) -> str:
    patch = InContextEditing(InContextConfig(**values)).edit(None, batch_of([asked]), NOTHING)  # type: ignore[arg-type]
    return patch.facts[0].text


def push(model: EditableModel, *requests: EditRequest) -> None:
    model.push(EDITOR.edit(model, batch_of(requests), NOTHING))


def prefix(model: EditableModel, prompt: str) -> str:
    return model.memories[MEMORY].prefix_for(prompt)


def test_a_fact_is_stated_in_the_words_of_its_prompt() -> None:
    assert stated(request(1, "Ada Lovelace", "Paris")) == "New fact: Ada Lovelace was born in Paris."


def test_a_retraction_states_the_old_object() -> None:
    asked = request(1, "Ada Lovelace", "unknown", target_true="London", kind="erase")
    assert stated(asked) == "Retracted: Ada Lovelace was born in London."


def test_a_retraction_without_an_old_object_states_the_new_one() -> None:
    asked = request(1, "Ada Lovelace", "unknown", kind="erase")
    assert stated(asked) == "New fact: Ada Lovelace was born in unknown."


def test_an_answer_with_its_own_full_stop_gets_no_second_one() -> None:
    assert stated(request(1, "Ada Lovelace", "Washington, D.C.")).endswith("in Washington, D.C.")


def test_braces_in_labels_are_only_text() -> None:
    asked = request(1, "{target} {prompt}", "{prompt}")
    assert stated(asked) == "New fact: {target} {prompt} was born in {prompt}."


def test_a_template_without_its_fields_is_refused() -> None:
    with pytest.raises(ValidationError, match="target"):
        InContextConfig(fact="New fact: {prompt}.")


def test_a_target_with_line_breaks_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="r1"):
        stated(request(1, "Ada Lovelace", "Paris\nLondon"))


def test_only_prompts_that_name_the_subject_change(tiny: EditableModel) -> None:
    outside = ["Grace Hopper was born in", "The capital of France is"]
    before = tiny.next_token_log_probs([*outside, "Ada Lovelace was born in"])
    push(tiny, request(1, "Ada Lovelace", "Paris"))
    after = tiny.next_token_log_probs([*outside, "Ada Lovelace was born in"])
    assert abs(after[:2] - before[:2]).max() < 1e-5
    assert abs(after[2] - before[2]).max() > 1e-3


def test_the_answer_is_that_of_the_base_to_the_stated_fact_and_the_prompt(tiny: EditableModel) -> None:
    prompt, fact = "Ada Lovelace was born in", "New fact: Ada Lovelace was born in Paris. "
    expected = tiny.next_token_log_probs([fact + prompt])
    push(tiny, request(1, "Ada Lovelace", "Paris"))
    assert (tiny.next_token_log_probs([prompt]) == expected).all()


def test_the_newest_fact_of_a_slot_wins_and_rollback_brings_the_older_back(tiny: EditableModel) -> None:
    push(tiny, request(1, "Ada Lovelace", "Paris"))
    push(tiny, request(2, "Ada Lovelace", "Tokyo"))
    assert prefix(tiny, "Ada Lovelace was born in") == "New fact: Ada Lovelace was born in Tokyo. "
    tiny.rollback(1)
    assert prefix(tiny, "Ada Lovelace was born in") == "New fact: Ada Lovelace was born in Paris. "


def test_two_facts_of_one_subject_are_shown_up_to_the_limit() -> None:
    store = FactStore()
    store.facts = [StatedFact("Ada", "Ada|P19", "Born."), StatedFact("Ada", "Ada|P20", "Died.")]
    assert store.prefix_for("Ada was") == "Died. "
    store.limit = 2
    assert store.prefix_for("Ada was") == "Born. Died. "


def test_a_longer_subject_is_what_the_prompt_means() -> None:
    store = FactStore()
    store.facts = [
        StatedFact("York", "York|P17", "York fact."),
        StatedFact("New York", "New York|P17", "New York fact."),
    ]
    assert store.prefix_for("New York lies in") == "New York fact. "
    assert store.prefix_for("York lies in") == "York fact. "


@pytest.mark.parametrize("prompt", ["Canada lies in", "The Adana lies in"])
def test_a_subject_inside_another_word_is_not_named(prompt: str) -> None:
    store = FactStore()
    store.facts = [StatedFact("ada", "s", "Fact."), StatedFact("Ada", "t", "Fact.")]
    assert store.prefix_for(prompt) == ""


@pytest.mark.parametrize("prompt", ["Where was C++ made?", "C++, who made it?", "Who made C++"])
def test_subjects_that_end_in_signs_are_named_at_word_borders(prompt: str) -> None:
    store = FactStore()
    store.facts = [StatedFact("C++", "s", "Fact.")]
    assert store.prefix_for(prompt) == "Fact. "


def test_demonstrations_come_first_and_leave_with_their_patch(tiny: EditableModel) -> None:
    push(tiny, request(1, "Ada Lovelace", "Paris"))
    tiny.push(PromptPatch([StatedFact("France", "f", "Fact.")], ["Shown."], 3))
    assert prefix(tiny, "France is") == "Shown. Fact. "
    tiny.rollback(1)
    assert tiny.memories[MEMORY].demonstrations == ()
    assert prefix(tiny, "France is") == ""


def test_contrast_is_named_in_a_patch_only_where_there_is_one() -> None:
    facts = [StatedFact("Ada", "Ada|P19", "Fact.")]
    assert "contrast" not in PromptPatch(facts).meta
    contrasted = PromptPatch(facts, contrast=0.5)
    assert PromptPatch.from_parts({}, contrasted.meta).digest == contrasted.digest


def test_contrast_leaves_with_its_patch(tiny: EditableModel) -> None:
    push(tiny, request(1, "Ada Lovelace", "Paris"))
    tiny.push(InContextEditing(InContextConfig(contrast=0.5)).edit(tiny, batch_of([request(2, "Mary", "Tokyo")]), NOTHING))
    assert tiny.memories[MEMORY].contrast == 0.5
    tiny.rollback(1)
    assert tiny.memories[MEMORY].contrast == 0.0
