"""Wordings of relations: the shipped ones, and what is said of a file that holds others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from warehouse.reference.general.world import wordings
from warehouse.reference.wordings import FEWEST, read_wordings
from warehouse.reference.world import templates

STATEMENTS = [f"Statement {i} of {{s}} is" for i in range(FEWEST)]
QUESTIONS = [f"Is {{s}} number {i}?" for i in range(FEWEST)]
ROW = {"phrase": "number", "statements": STATEMENTS, "questions": QUESTIONS}


def write(path: Path, table: object) -> Path:
    path.write_text(yaml.safe_dump(table))
    return path


def test_every_relation_of_the_embedded_world_has_wordings() -> None:
    assert set(templates()) <= set(wordings())


def test_the_wordings_of_two_relations_are_never_the_same() -> None:
    """Asked in such a wording, a subject with both relations would have two right answers."""
    count = Counter(w.casefold() for found in wordings().values() for w in found.statements + found.questions)
    assert {wording: n for wording, n in count.items() if n > 1} == {}


def test_a_phrase_names_one_relation() -> None:
    assert len({found.phrase for found in wordings().values()}) == len(wordings())


def test_a_subject_stands_where_it_is_named_even_with_braces() -> None:
    capital = wordings()["P36"]
    assert capital.statement(0, "{o} Land") == "The capital of {o} Land is"
    assert capital.question(0, "{o} Land") == "What is the capital of {o} Land?"


def test_a_users_templates_file_may_word_some_relations_and_not_others(tmp_path: Path) -> None:
    table = {"P1": ROW | {"prompts": ["{s} is"]}, "P2": {"phrase": "other", "prompts": ["{s} is"]}}
    found = read_wordings(write(tmp_path / "own.yaml", table))
    assert list(found) == ["P1"]
    assert (found["P1"].statements, found["P1"].questions) == (tuple(STATEMENTS), tuple(QUESTIONS))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"statements": STATEMENTS[1:]}, "found 8 statements, expected at least 9"),
        ({"questions": None}, "found 0 questions, expected at least 9"),
        ({"phrase": ""}, "needs a phrase"),
        ({"statements": [*STATEMENTS, "Nobody is"]}, "statements: names the subject {s} 0 times, not once: 'Nobody is'"),
        ({"questions": [*QUESTIONS, "Is {s} {s}?"]}, "questions: names the subject {s} 2 times, not once: 'Is {s} {s}?'"),
        ({"questions": [*QUESTIONS, "{s} is"]}, "questions: does not end with a question mark: '{s} is'"),
        ({"statements": [*STATEMENTS, "Is {s}?"]}, "statements: is a question, and not a statement to go on with: 'Is {s}?'"),
        ({"statements": [*STATEMENTS, "{s} is "]}, "statements: has spaces or line ends too many: '{s} is '"),
        ({"statements": [*STATEMENTS, "Of {s}:"]}, "statements: ends with a mark, where the object should follow: 'Of {s}:'"),
        ({"statements": [*STATEMENTS, STATEMENTS[0].upper().replace("{S}", "{s}")]}, "statements: stands there 2 times"),
        ({"statements": [*STATEMENTS, 7]}, "statements: is int, not text: 7"),
    ],
)
def test_a_file_with_a_wrong_wording_is_refused_by_relation_and_wording(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = write(tmp_path / "own.yaml", {"P1": ROW | change})
    with pytest.raises(ValueError) as error:
        read_wordings(path)
    assert str(error.value).startswith(f"{path}: P1: ") and said in str(error.value)


@pytest.mark.parametrize("text", ["- a list", "P1: word", "P1: [", ""])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"own\.yaml: "):
        read_wordings(tmp_path / "own.yaml")
