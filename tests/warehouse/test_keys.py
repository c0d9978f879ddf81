"""One key for ids, relations, labels and slots."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warehouse.keys import Slots, clean_text, entity_id, folded, relation_words, slot_of
from warehouse.records import EditRequest


@pytest.mark.parametrize(
    "written",
    [
        "Q42", "q42", " Q42 ", "Q42\n", "\u200bQ42\ufeff", "\u00a0Q42", "Q042", "Q 42", "\uff31\uff14\uff12", "wd:Q42",
        "WD:q42", "wd: Q42",
        "http://www.wikidata.org/entity/Q42", "https://www.wikidata.org/entity/Q42", "http://wikidata.org/entity/q42",
        "https://www.wikidata.org/wiki/Q42", "https://www.wikidata.org/wiki/Q42#P19", "https://m.wikidata.org/wiki/Q42",
        "//www.wikidata.org/wiki/Q42", "www.wikidata.org/wiki/Q42", "https://www.wikidata.org/wiki/Q42?uselang=de#sitelinks",
        "https://www.wikidata.org/wiki/Special:EntityData/Q42.json", "https://www.wikidata.org/wiki/Special:EntityPage/Q42",
        "https://www.wikidata.org/w/index.php?title=Q42&oldid=1", "https://www.wikidata.org/wiki/Item:Q42",
        "<http://www.wikidata.org/entity/Q42>", "[[Q42]]", "[[wikidata:Q42]]", "d:Q42", "Item:Q42",
        "Douglas Adams (Q42)", "Q42 (Douglas Adams)", "Q42#P19",
    ],
)  # fmt: skip
def test_an_item_has_one_id_however_it_is_written(written: str) -> None:
    assert entity_id(written) == "Q42"


@pytest.mark.parametrize(
    "written",
    [
        "P19", "p19", "P19 ", "Property:P19", "property:p19", "wdt:P19", "p:P19", "ps:P19", "pq:P19", "wd:P19",
        "http://www.wikidata.org/prop/direct/P19", "https://www.wikidata.org/wiki/Property:P19",
        "https://www.wikidata.org/wiki/Property%3AP19", "http://www.wikidata.org/entity/P19",
        "http://www.wikidata.org/prop/statement/P19", "place of birth (P19)", "P19 (place of birth)", "P19: place of birth",
    ],
)  # fmt: skip
def test_a_property_has_one_id_however_it_is_written(written: str) -> None:
    assert entity_id(written) == "P19"


@pytest.mark.parametrize(
    "written", ["", "Q", "Q0", "42", "Ada", "emp-17", "case-7/Q42", "https://base.example/entity/Q42", "Q:Ada", "acme:Q42",
                "http://notwikidata.org/entity/Q42"],
)  # fmt: skip
def test_ids_of_other_stores_stay_as_they_are(written: str) -> None:
    assert entity_id(written) == written
    assert entity_id(f" {written}\u00a0") == written


@given(st.text(max_size=60))
def test_a_key_of_a_key_is_the_key(text: str) -> None:
    assert entity_id(entity_id(text)) == entity_id(text)
    assert folded(folded(text)) == folded(text)
    assert clean_text(clean_text(text)) == clean_text(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("M\u00fcnchen", unicodedata.normalize("NFD", "M\u00fcnchen")), ("Anna Berg", "Anna\u00a0Berg"),
        ("Anna Berg", "Anna\u202fBerg"), ("Anna Berg", " anna  BERG\t"), ("Anna Berg", "An\u200bna Berg"),
        ("Anna Berg", "\ufeffAnna Berg"), ("Anna Berg", "Anna\u00ad Berg"), ("L'Aquila", "L\u2019Aquila"),
        ("Baden-Baden", "Baden\u2011Baden"), ("Baden-Baden", "Baden\u2013Baden"), ("Oslo", "\uff2f\uff53\uff4c\uff4f"),
        ("final", "\ufb01nal"), ("Stra\u00dfe", "STRASSE"),
    ],
)  # fmt: skip
def test_labels_that_read_the_same_have_one_key(one: str, other: str) -> None:
    assert folded(one) == folded(other)


def test_other_labels_have_other_keys() -> None:
    assert len({folded(text) for text in ("Oslo", "Oslo II", "O-slo", "\u00d6slo", "Osl\u00f6")}) == 5


def test_a_label_is_kept_composed_and_with_plain_spaces() -> None:
    assert clean_text("\u00a0Mu\u0308nchen\u2003Ost ") == "M\u00fcnchen Ost"
    # What the rules of the door look at is still there.
    assert clean_text("a\u200bb\x00c\nd") == "a\u200bb\x00c\nd"


def test_names_of_relations_are_compared_as_words() -> None:
    written = ("place of birth", "Place of Birth", "place_of_birth", "place-of-birth", "placeOfBirth", " Place  of birth:")
    assert {relation_words(text) for text in written} == {"place of birth"}


def asked(subject: str, subject_id: str = "", relation: str = "P19") -> EditRequest:
    return EditRequest(request_id="r", prompt=f"{subject} was born in", subject=subject, relation=relation, target_new="Oslo",
                       subject_id=subject_id)  # fmt: skip


def test_a_slot_is_met_by_id_and_by_label_where_one_side_has_no_id() -> None:
    tonight = Slots([asked("Anna Berg", "Q1"), asked("Bo Dahl")])
    assert asked("Anna Berg-Holm", "Q1") in tonight
    assert asked("anna\u00a0berg") in tonight
    assert asked("Bo Dahl", "Q2") in tonight
    assert asked("Anna Berg", "Q9") not in tonight
    assert asked("Cid Elm") not in tonight
    assert asked("Bo Dahl", relation="P20") not in tonight


def test_two_subjects_without_an_id_are_two_slots() -> None:
    assert slot_of(asked("Anna Berg")) != slot_of(asked("Bo Dahl"))
    assert asked("Bo Dahl") not in Slots([asked("Anna Berg")])
