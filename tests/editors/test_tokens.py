"""Positions of subjects and targets come from the offsets of the full string."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from editors.asking.tokens import continuation_of, encode_rows, pad_id_of, pad_right
from tests.support import tiny_tokenizer


def trimming_tokenizer() -> PreTrainedTokenizerFast:
    """As GPT-2's own: offsets without the leading space."""
    # A copy of the core: the tiny tokenizer is shared by all tests.
    core = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
    )


@pytest.mark.parametrize("target", ["Paris", "  Paris ", "Paris\n"])
def test_a_target_gets_exactly_one_leading_space(target: str) -> None:
    assert continuation_of(target) == " Paris"


@pytest.mark.parametrize("target", ["Paris", "Łódź", "é", "(a)", "7", "New York City", "{x}", "雪"])
@pytest.mark.parametrize("trims", [False, True])
def test_continuation_tokens_spell_the_target_and_prompt_tokens_the_prompt(target: str, trims: bool) -> None:
    tokenizer = trimming_tokenizer() if trims else tiny_tokenizer()
    prompt = "Émile Zola was born in"
    row = encode_rows(tokenizer, [prompt], [continuation_of(target)])[0]
    assert tokenizer.decode(row.ids[row.start :]) == " " + target
    assert tokenizer.decode(row.ids[: row.start]) == prompt


def test_an_empty_prompt_is_the_begin_token() -> None:
    row = encode_rows(tiny_tokenizer(), [""], ["Paris"])[0]
    assert (row.start, row.ids[0]) == (1, tiny_tokenizer().bos_token_id)
    assert tiny_tokenizer().decode(row.ids[1:]) == "Paris"


def test_an_empty_continuation_starts_behind_the_prompt() -> None:
    row = encode_rows(tiny_tokenizer(), ["Paris is"], [""])[0]
    assert row.start == len(row.ids)


def test_padding_stands_on_the_right_and_is_masked() -> None:
    ids, mask = pad_right([[5, 6, 7], [8]], 1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_tokenizer_without_padding_pads_with_its_end_token() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="<|endoftext|>")
    assert pad_id_of(tokenizer) == tokenizer.eos_token_id
