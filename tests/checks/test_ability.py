"""General ability: the items are sound, and what is scored is what `f_0` could do."""

from __future__ import annotations

import operator
import re
from collections import Counter

import pytest

from checks.ability.items import AbilityItem, ability_items, answered, answered_still
from checks.metrics.ability import ability
from tests.checks.support import ScriptedPredictor

SIGNS = {"+": operator.add, "-": operator.sub, "x": operator.mul}
TWO = (AbilityItem("sum", "1 + 1 =", ("2",)), AbilityItem("opposite", "Not up but", ("down", "below")))


def test_there_are_more_than_a_hundred_items_of_every_kind_of_answer() -> None:
    kinds = Counter(item.kind for item in ability_items())
    assert sum(kinds.values()) >= 120
    assert min(kinds.values()) >= 12


def test_no_two_items_ask_the_same() -> None:
    prompts = [item.prompt for item in ability_items()]
    assert len(set(prompts)) == len(prompts)


def test_a_prompt_ends_where_an_answer_begins_with_no_space_between_them() -> None:
    for item in ability_items():
        assert item.prompt == item.prompt.rstrip(), item
        assert item.answers and all(answer and answer == answer.strip() for answer in item.answers), item


def test_no_item_is_shown_with_its_answer_in_its_own_prompt() -> None:
    for item in ability_items():
        *_, asked = re.split(r"\n\n|(?<=\d)\n|(?<=\.) ", item.prompt)
        assert all(f"{asked} {answer}" not in item.prompt for answer in item.answers), item


def test_every_sum_difference_and_product_is_right() -> None:
    asked = [(item, re.search(r"(\d+) ([-+x]) (\d+) =$", item.prompt)) for item in ability_items()]
    checked = [(item.answers, SIGNS[m[2]](int(m[1]), int(m[3]))) for item, m in asked if m]
    assert len(checked) == sum(item.kind in ("sum", "difference", "product") for item in ability_items())
    assert all(answers == (str(right),) for answers, right in checked)


def test_any_accepted_answer_counts() -> None:
    assert answered(ScriptedPredictor("m", {"Not up but": "below", "1 + 1 =": "3"}), TWO) == (False, True)


def test_only_what_was_answered_before_is_asked_again() -> None:
    model = ScriptedPredictor("m", {"Not up but": "down", "1 + 1 =": "2"})
    assert answered_still(model, TWO, (False, True)) == (False, True)
    assert {question.prompt for question in model.score_calls[0]} == {"Not up but"}


def test_a_lost_answer_is_not_paid_for_by_a_new_one() -> None:
    items = [AbilityItem("sum", f"{i} + 0 =", (str(i),)) for i in range(4)] + [AbilityItem("order", "1, 2,", ("3",))]
    scores = {s.slice: s for s in ability(items, (True, True, True, False, False), (True, True, False, True, True))}
    assert (scores[""].value, scores[""].n) == (pytest.approx(2 / 3), 3)
    assert (scores["sum"].value, scores["sum"].n) == (pytest.approx(2 / 3), 3)
    assert (scores["order"].value, scores["order"].n) == (None, 0)


def test_what_the_score_rests_on_stands_beside_it() -> None:
    (base,) = (s for s in ability(TWO, (True, False), (False, False)) if s.slice == "base")
    assert (base.value, base.n) == (0.5, 2)
    assert base.low is not None and base.high is not None and base.low < 0.5 < base.high
