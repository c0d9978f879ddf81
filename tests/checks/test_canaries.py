"""A server's answers against those of every checkpoint of a line, with answers written by hand."""

from __future__ import annotations

import pytest

from checks.canaries import answer_in, judge, says
from checks.errors import EvaluationError
from warehouse.records import Canary, CanarySet

BASE, FIRST, SECOND, THIRD = (letter * 64 for letter in "0abc")


def edit(number: int, since: str, previous: str | None = None) -> Canary:
    return Canary(
        kind="edit", prompt=f"e{number}", form="", expected=f"New{number}", previous=previous, base=f"Old{number}", since=since
    )


#: Two edits of each of three nights and six bystanders; the promoted one is the third.
CANARIES = CanarySet(
    checkpoint_id=THIRD,
    line=(BASE, FIRST, SECOND),
    max_tokens=12,
    canaries=(
        *(edit(n, FIRST) for n in (1, 2)),
        *(edit(n, SECOND) for n in (3, 4)),
        *(edit(n, THIRD, previous=f"Old{n}") for n in (5, 6)),
        *(Canary(kind="bystander", prompt=f"b{n}", form="", expected=f"Town{n}") for n in range(6)),
    ),
)


def answers(new: int) -> list[str]:
    """Of a checkpoint with the first so many edits."""
    return [f" New{n}. And so" if n <= new else f" Old{n}, and" for n in range(1, 7)] + [f" Town{n}\n" for n in range(6)]


@pytest.mark.parametrize(
    ("text", "expected", "said"),
    [
        (" Oslo. It", "Oslo", True),
        ("Oslo", "Oslo", True),
        (" Oslo and", "Oslo", True),
        (" Osloans", "Oslo", False),
        (" New York City.", "New York", False),
        (" Bergen, not Oslo", "Oslo", False),
        ("", "Oslo", False),
        ("", "", True),
        (". ", "", True),
        (" Oslo", "", False),
    ],
)
def test_an_answer_is_given_whole_and_then_ends(text: str, expected: str, said: bool) -> None:
    assert says(text, expected) is said


def test_of_known_answers_the_given_one_is_kept_else_the_first_clause() -> None:
    assert answer_in(" Washington, D.C. is", ["Paris", "Washington, D.C."]) == "Washington, D.C."
    assert answer_in(" a city in Norway. It", ["Paris"]) == "a city in Norway"


@pytest.mark.parametrize(("edits", "served"), [(0, BASE), (2, FIRST), (4, SECOND)])
def test_an_older_checkpoint_is_named(edits: int, served: str) -> None:
    found = judge(CANARIES, answers(edits))
    assert (found.verdict, found.answers_as) == ("differs", (served,))
    assert (found.edits, found.bystanders) == (edits, 6)
    assert found.wrong[0] == (f"e{edits + 1}", f"New{edits + 1}", f"Old{edits + 1}, and")


def test_the_promoted_one_agrees() -> None:
    found = judge(CANARIES, answers(6))
    assert (found.verdict, found.answers_as, found.wrong) == ("agrees", (THIRD,), ())
    assert [(fit.checkpoint_id, fit.edits, fit.bystanders) for fit in found.fits] == [
        (BASE, 0, 6), (FIRST, 2, 6), (SECOND, 4, 6), (THIRD, 6, 6)
    ]  # fmt: skip


def test_one_wrong_bystander_is_a_difference_unless_fewer_are_asked_for() -> None:
    given = [*answers(6)[:-1], " Village"]
    strict, lenient = judge(CANARIES, given), judge(CANARIES, given, least=0.8)
    assert (strict.verdict, strict.answers_as) == ("differs", (THIRD,))
    assert lenient.verdict == "agrees"


@pytest.mark.parametrize("text", ["", "!!!!!!!!", "\ufffd\ufffd", " the the the the the"])
def test_a_server_that_says_nothing_is_broken(text: str) -> None:
    found = judge(CANARIES, [text] * 12)
    assert (found.verdict, found.meaningless, found.answers_as) == ("garbled", 12, ())


def test_answers_of_no_checkpoint_name_none() -> None:
    found = judge(CANARIES, [*answers(3)[:6], *[" Elsewhere"] * 6])
    assert (found.verdict, found.answers_as) == ("differs", ())


def test_checkpoints_that_the_canaries_cannot_tell_apart_are_all_named() -> None:
    """Nothing of the first night is asked: it and the base answer alike."""
    asked = CANARIES.model_copy(update={"canaries": CANARIES.canaries[2:]})
    assert judge(asked, answers(0)[2:]).answers_as == (FIRST, BASE)


def test_another_number_of_answers_is_refused() -> None:
    with pytest.raises(EvaluationError, match="11 answers to 12 canaries"):
        judge(CANARIES, answers(6)[1:])
