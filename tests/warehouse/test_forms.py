"""Forms: texts that name the subject and end where the answer begins; what is learnt from and what is measured are apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warehouse.records import EditRequest
from warehouse.reference.general.world import wordings
from warehouse.world.forms import FORMS, MEASURED, PLAINLY, Asker, Demonstration, FormName, FormRate, Forms, split_wordings

SHOWN = (
    Demonstration(subject="Norway", object="Oslo"),
    Demonstration(subject="Kenya", object="Nairobi"),
    Demonstration(subject="Peru", object="Lima"),
)
CHAT = ("<user>", "</user><assistant>")


def _asker(*names: FormName, rates: tuple[FormRate, ...] = ()) -> Asker:
    forms = Forms(model_digest="m", names=names, chat=CHAT, demonstrations={"P36": SHOWN}, rates=rates)
    return Asker(forms, wordings())


def _request(**changes: object) -> EditRequest:
    known = wordings()["P36"]
    given = {
        "request_id": "r1",
        "prompt": known.statement(0, "France"),
        "subject": "France",
        "relation": "P36",
        "target_new": "Lyon",
        "target_true": "Paris",
        "subject_id": "Q142",
        "rephrases": (known.statement(1, "France"),),
    }
    return EditRequest.model_validate(given | changes)


@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_of_every_form_ends_where_the_answer_begins(form: FormName) -> None:
    prompt = _asker(form).prompt(form, wordings()["P36"], 0, "France")
    assert "France" in prompt
    assert prompt == prompt.rstrip()
    assert prompt.endswith("Answer:" if form == "few_shot_questions" else wordings()["P36"].statement(0, "France"))


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_known_by_its_prompt(form: FormName) -> None:
    asker = _asker(*FORMS)
    assert asker.form_of(asker.prompt(form, wordings()["P36"], 3, "France")) == form


def test_demonstrations_stand_before_a_few_shot_prompt_with_their_answers() -> None:
    prompt = _asker("few_shot_questions").prompt("few_shot_questions", wordings()["P36"], 0, "France")
    assert [prompt.count(f"Answer: {d.object}\n") for d in SHOWN] == [1, 1, 1]


def test_one_relation_has_one_beginning_whatever_the_wording() -> None:
    asker, known = _asker("few_shot"), wordings()["P36"]
    prompts = [asker.prompt("few_shot", known, i, "France") for i in (0, 5)]
    start = prompts[0].removesuffix(known.statement(0, "France"))
    assert prompts[1] == start + known.statement(5, "France")


def test_a_model_that_is_asked_plainly_leaves_a_request_as_it_is() -> None:
    assert PLAINLY.state(_request()) == _request()


def test_what_is_measured_is_never_learnt_from() -> None:
    stated = _asker("few_shot_questions", "chat", "few_shot").state(_request())
    learnt = {stated.prompt, *stated.also, *stated.wordings}
    assert not learnt & {*stated.rephrases, *stated.carry_over}


def test_every_form_has_wordings_to_learn_from_and_to_measure() -> None:
    asker = _asker("few_shot_questions", "chat", "few_shot")
    stated = asker.state(_request())
    for prompts in (stated.wordings, stated.rephrases):
        counts = [sum(asker.form_of(p) == form for p in prompts) for form in asker.forms.names]
        assert counts == [MEASURED] * 3


def test_the_first_learnt_wordings_are_of_all_forms() -> None:
    asker = _asker("few_shot_questions", "chat", "few_shot")
    assert {asker.form_of(p) for p in asker.state(_request()).wordings[:3]} == set(asker.forms.names)


def test_a_form_that_the_model_is_poor_in_is_asked_apart() -> None:
    stated = _asker("chat").state(_request())
    known = wordings()["P36"]
    assert set(stated.carry_over) <= {w.replace("{s}", "France") for w in known.statements}
    assert len(stated.carry_over) == MEASURED


def test_a_request_in_words_of_its_own_keeps_them() -> None:
    own = _request(prompt="Everybody in France looks up to")
    stated = _asker("chat").state(own)
    assert stated.prompt == own.prompt
    assert _asker("chat").prompt("chat", wordings()["P36"], 0, "France") in stated.also


def test_a_relation_without_wordings_stays_as_it_is() -> None:
    own = _request(relation="P99999")
    assert _asker("chat").state(own) == own


def test_a_form_is_competent_where_the_base_answers_half_of_what_it_knows() -> None:
    rates = (
        FormRate(relation="", form="plain", right=10, known=40, asked=100),
        FormRate(relation="", form="chat", right=30, known=40, asked=100),
        FormRate(relation="P36", form="plain", right=8, known=10, asked=12),
        FormRate(relation="P36", form="chat", right=4, known=10, asked=12),
        FormRate(relation="P27", form="plain", right=1, known=1, asked=12),
    )
    forms = Forms(names=("chat", "plain"), rates=rates, chat=CHAT)
    assert forms.competent("P36") == ("plain",)
    assert forms.competent("P27") == ("chat",)  # one known fact says nothing: the rates over all count


def test_a_relation_without_demonstrations_is_not_asked_with_them() -> None:
    assert _asker("few_shot", "chat").forms.competent("P27") == ("chat",)


@given(st.text(min_size=1), st.text(min_size=1), st.integers(1, 12), st.sets(st.integers(0, 11)))
def test_wordings_are_drawn_into_two_sets(subject: str, relation: str, count: int, kept_out: set[int]) -> None:
    learnt, measured = split_wordings(subject, relation, count, kept_out=sorted(kept_out))
    assert sorted([*learnt, *measured]) == list(range(1, count))
    first = [i for i in sorted(kept_out) if 0 < i < count]
    assert set(measured) <= set(first) or set(first) <= set(measured)


@pytest.mark.parametrize("count", [9, 10, 11])
def test_at_least_four_wordings_are_learnt_from_and_four_measured(count: int) -> None:
    learnt, measured = split_wordings("Q1", "P36", count)
    assert (len(learnt) >= MEASURED, len(measured)) == (True, MEASURED)
