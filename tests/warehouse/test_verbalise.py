"""From changes to edit requests."""

from __future__ import annotations

from typing import Any

import pytest

from tests.warehouse.test_changes import EVENT, parse
from warehouse.records import EditRequest
from warehouse.reference.build import held_out_templates
from warehouse.reference.world import UNKNOWN, Template, facts, templates
from warehouse.world.changes import Change, Value
from warehouse.world.verbalise import Unverbalised, verbalise, with_rephrases


def change(**fields: object) -> Change:
    parsed = parse(EVENT)
    assert isinstance(parsed, Change)
    return parsed.model_copy(update=fields)


def request(of: Change, **options: object) -> EditRequest:
    found = verbalise(of, templates(), **options)  # type: ignore[arg-type]
    assert isinstance(found, EditRequest)
    return found


def test_a_replacement_is_asked_in_the_canonical_prompt() -> None:
    asked = request(change())
    assert asked.prompt == templates()["P19"].prompt(0, "Ada {s} Byron")
    assert (asked.kind, asked.target_new, asked.target_true) == ("modify", "Paris", "London")
    assert (asked.subject_id, asked.target_new_id, asked.relation) == ("Q1", "Q90", "P19")


def test_the_subject_is_in_every_prompt_braces_and_all() -> None:
    for label in ("Ada {s} Byron", "{0}", "{o}", "100% {", "a\\1b"):
        asked = request(change(subject=change().subject.model_copy(update={"label": label})))
        assert all(label in prompt for prompt in (asked.prompt, *asked.rephrases))


def test_the_templates_kept_out_of_training_are_measured() -> None:
    fact = next(fact for fact in facts() if fact.held_out)
    subject = change().subject.model_copy(update={"id": fact.subject_id, "label": fact.subject})
    asked = request(change(subject=subject, relation=fact.relation))
    assert {templates()[fact.relation].prompt(i, fact.subject) for i in fact.held_out} < set(asked.rephrases)
    assert set(held_out_templates(fact.subject_id, fact.relation)) == fact.held_out


def test_four_templates_of_a_slot_are_measured_and_the_others_left_to_learn_from() -> None:
    asked = request(change(), held_out=lambda subject_id, relation: ())
    assert len(asked.rephrases) == 4 and asked.prompt not in asked.rephrases


def test_held_out_indices_beyond_the_users_templates_are_ignored() -> None:
    short = {"P19": Template("P19", "birthplace", ("{s} was born in", "The birthplace of {s} is"))}
    asked = verbalise(change(), short, held_out=lambda subject_id, relation: (1, 7))
    assert isinstance(asked, EditRequest) and asked.rephrases == ("The birthplace of Ada {s} Byron is",)


def test_an_addition_is_an_insert() -> None:
    asked = request(change(op="add_statement", old=None))
    assert (asked.kind, asked.target_true) == ("insert", None)


@pytest.mark.parametrize("fields", [{"op": "remove_statement"}, {"op": "set_rank", "rank": "deprecated"}])
def test_a_withdrawn_value_is_erased_towards_unknown(fields: dict[str, str]) -> None:
    asked = request(change(new=None, **fields))
    assert (asked.kind, asked.target_new, asked.target_true, asked.target_new_id) == ("erase", UNKNOWN, "London", "")


def test_the_request_id_depends_on_record_slot_and_target_alone() -> None:
    first = request(change()).request_id
    assert request(change(comment="other", references=9)).request_id == first
    assert request(change(record_id="r2")).request_id != first
    assert request(change(relation="P20")).request_id != first
    assert request(change(new=Value(type="item", id="Q64", label="Berlin"))).request_id != first


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"op": "set_label"}, "not_a_statement"),
        ({"relation": "P99999"}, "unknown_property"),
        ({"new": Value(type="none", snaktype="somevalue")}, "no_value"),
        ({"new": None}, "no_value"),
        ({"new": Value(type="string", label="x")}, "unsupported_datatype"),
        ({"new": Value(type="item", id="Q5", label="  ")}, "empty_label"),
    ],
)
def test_what_no_prompt_can_state_is_named(fields: dict[str, object], reason: str) -> None:
    found = verbalise(change(**fields), templates())
    assert isinstance(found, Unverbalised)
    assert found.reason == reason and found.record_id in found.sentence


# ---------------------------------------------------------------- other wordings of a user's request


def asked(**fields: Any) -> EditRequest:
    given: dict[str, Any] = {
        "request_id": "r",
        "prompt": "Ada was born in",
        "subject": "Ada",
        "relation": "P19",
        "target_new": "Oslo",
    }
    return EditRequest(**(given | fields))


def test_a_request_is_reworded_by_its_relations_templates() -> None:
    found = with_rephrases(asked(), templates()).rephrases
    assert found and asked().prompt not in found
    assert set(found) <= {templates()["P19"].prompt(i, "Ada") for i in range(len(templates()["P19"].prompts))}


def test_a_relation_without_templates_is_reworded_from_the_prompts_own_form() -> None:
    found = with_rephrases(asked(relation="mascot", prompt="The mascot of Ada is"), templates()).rephrases
    assert found[:2] == ("Ada's mascot is", "Question: What is the mascot of Ada? Answer:") and len(set(found)) == 3
    odd = with_rephrases(asked(relation="mascot", prompt="Ada cheers for"), templates()).rephrases
    assert len(set(odd)) == 3 and all(prompt.endswith("Ada cheers for") for prompt in odd)
    question = with_rephrases(asked(relation="mascot", prompt="What does Ada cheer for?"), templates()).rephrases
    assert len(set(question)) == 3 and all("What does Ada cheer for?" in prompt for prompt in question)


def test_what_the_user_gave_stands() -> None:
    assert with_rephrases(asked(rephrases=("Ada's birthplace is",)), templates()).rephrases == ("Ada's birthplace is",)
    assert with_rephrases(asked(relation="text:{s} was born in"), templates()).rephrases == ()
