"""The naming of a subject that a prompt asks about: whole words, no part of a longer name, the template's own."""

from __future__ import annotations

import pytest

from editors.asking.subjects import place_of, subject_places
from editors.base import TrainingEdit
from editors.errors import InvalidRequest
from editors.mechanics.answers import check_request
from editors.mechanics.contexts import Contexts, each_naming, encode_lookups, encode_namings
from editors.mechanics.paraphrases import relation_templates, stated_templates
from editors.model import EditableModel
from editors.targets.keys_values import lookup_states
from tests.support import request
from tests.tokenizers import family


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The capital of ^Niger, which borders Nigeria, is", "Niger"),
        ("The capital of ^Guinea, which borders Guinea-Bissau, is", "Guinea"),
        ("The capital of ^Guinea, a neighbour of Guinea Bissau, is", "Guinea"),
        ("The capital of ^Guinea, unlike Papua New Guinea, is", "Guinea"),
        ("The capital of ^Congo, beside the Democratic Republic of Congo, is", "Congo"),
        ("Papua New Guinea is big. The capital of ^Guinea is", "Guinea"),
        ("France is big. The capital of ^France is", "France"),
        ("Canada is where ^Ada was born: in", "Ada"),
        ("^Ada was born in Canada, in", "Ada"),
        ("Apollo 11 came after ^Apollo 1, flown in", "Apollo 1"),
        ("^Ann's sister Anna was born in", "Ann"),
        ("The author of ^It is", "It"),
        ("^Émile Zola, not Émile Zolas, wrote", "Émile Zola"),
        ("^São, not Sãoland, lies in", "São"),
        ("尼日利亚的邻国^尼日尔的首都是", "尼日尔"),
        ("^尼日尔的首都是", "尼日尔"),
        ("^니제르의 수도는", "니제르"),
        ("^दिल्ली की राजधानी दिल्लीवाला", "दिल्ली"),
        ("^Yahoo! was founded in", "Yahoo!"),
        ("Столица ^Нигер, а не Нигерия, это", "Нигер"),
    ],
)
def test_the_naming_that_is_asked_about_is_found(prompt: str, subject: str) -> None:
    at = prompt.index("^")
    assert place_of(prompt.replace("^", ""), subject) == at


@pytest.mark.parametrize(
    ("prompt", "subject", "word"),
    [("The capital of Nigeria is", "Niger", "Nigeria"), ("Canada lies in", "ada", "Canada"), ("In 1999 came", "199", "1999")],
)
def test_a_subject_that_is_only_part_of_a_word_is_refused_with_the_word(prompt: str, subject: str, word: str) -> None:
    with pytest.raises(InvalidRequest, match=f"longer word '{word}'"):
        place_of(prompt, subject)
    with pytest.raises(InvalidRequest, match=f"request r1: .*longer word '{word}'"):
        check_request(request(1, subject, "Paris", prompt=prompt))


@pytest.mark.parametrize("subject", ["Tokyo", "", " "])
def test_a_subject_that_is_not_there_is_refused(subject: str) -> None:
    with pytest.raises(InvalidRequest, match="must name its subject"):
        place_of("Paris lies in", subject)


def test_the_slot_of_a_known_wording_is_the_place() -> None:
    assert place_of("Who wrote It? It is by", "It") == 14
    assert place_of("Who wrote It? It is by", "It", ["{} was written by", "Who wrote {}? It is by"]) == 10


def test_among_scripts_without_spaces_a_naming_that_ends_with_a_token_counts() -> None:
    tokenizer = family("unigram")
    places = subject_places("東京の首都は、東京都", "東京")
    assert places == [0, 7]
    ends = {end for _, end in tokenizer("東京の首都は、東京都", return_offsets_mapping=True)["offset_mapping"]}
    expected = max(places, key=lambda at: (at + 2 in ends, at))
    assert place_of("東京の首都は、東京都", "東京", tokenizer=tokenizer) == expected


def test_the_lookup_token_ends_the_subject_and_not_the_longer_word(tiny: EditableModel) -> None:
    prompt = "The capital of Paris, which borders Parisland, is"
    (row,) = encode_lookups(tiny, [prompt], ["Paris"], [" Tokyo"])
    assert tiny.tokenizer.decode(row.ids[: row.lookup + 1]) == "The capital of Paris"
    assert tiny.tokenizer.decode(row.ids[row.first : row.lookup + 1]) == " Paris"
    assert tiny.tokenizer.decode(row.ids[row.start :]) == " Tokyo"


def test_a_context_that_names_the_subject_does_not_draw_the_lookup_token_to_it(tiny: EditableModel) -> None:
    """ "Paris Hilton" makes the prompt's naming look like part of a longer name, the context's does not."""
    asked = request(1, "Paris", "Tokyo", prompt="The capital of {} Hilton is")
    contexts = Contexts(("{}", "I saw Paris. {}"), (0, 1))
    prompts = contexts.fill(asked.prompt)
    places = contexts.places(asked.prompt, "Paris", tiny.tokenizer)
    assert [p[at : at + 12] for p, at in zip(prompts, places, strict=True)] == ["Paris Hilton"] * 2
    rows = encode_lookups(tiny, prompts, ["Paris"] * 2, ["", ""], places=places)
    assert str(tiny.tokenizer.decode(rows[1].ids[: rows[1].lookup + 1])).endswith("capital of Paris")
    states = lookup_states(tiny, [asked], contexts, tiny.anatomy.mlp_out, 1)
    assert states.inputs.shape[:2] == (1, 2)


def test_every_naming_of_a_subject_is_found_but_those_in_longer_names(tiny: EditableModel) -> None:
    prompts = ["What is the capital of Niger? The capital of Niger is", "Niger lies beside Nigeria", "Guinea-Bissau and Guinea"]
    rows = encode_namings(tiny, prompts, ["Niger", "Niger", "Guinea"], [""] * 3)
    assert [len(row.again) for row in rows] == [1, 0, 0]
    for row, start in zip(
        [*each_naming(rows)], ["What is the capital of Niger", prompts[0][:-3], "Niger", prompts[2]], strict=True
    ):
        assert str(tiny.tokenizer.decode(row.ids[: row.lookup + 1])).endswith(start)
    once = encode_lookups(tiny, prompts[1:], ["Niger", "Guinea"], ["", ""])
    assert [(r.ids, r.lookup) for r in rows[1:]] == [(r.ids, r.lookup) for r in once]


def test_a_wording_that_names_its_subject_twice_is_filled_at_both_places() -> None:
    twice = request(1, "Niger", "Paris", prompt="The capital of {} is").model_copy(
        update={"prompt": "Where? In Niger. Niger has as its capital", "also": ("Niger has",)}
    )
    edits = [TrainingEdit(twice, ())]
    assert "Where? In {}. {} has as its capital" in relation_templates(edits)[twice.relation]
    assert stated_templates(edits) == {twice.relation: ["Where? In {}. {} has as its capital", "{} has"]}


def test_wordings_are_taken_from_whole_words_alone() -> None:
    inside = TrainingEdit(request(1, "Ada", "Paris", prompt="{} was born in Canada, in"), ())
    (found,) = relation_templates([inside]).values()
    assert "{} was born in Canada, in" in found
    within = TrainingEdit(request(2, "Niger", "Paris", prompt="The capital of Nigeria is"), ())
    assert all("Nigeria" not in t and "{}ia" not in t for group in relation_templates([within]).values() for t in group)
