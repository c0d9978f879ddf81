"""Exact match from one teacher-forced pass, and where an answer ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from editors.asking.calls import Call, Generation, LogitBatch
from editors.asking.scoring import score_call, stop_tokens
from tests.support import tiny_tokenizer
from warehouse.questions import ends_answer

VOCAB = len(tiny_tokenizer())


class Scripted:
    """A runner that says what it is told: for each row the continuation ids and the argmax at each position."""

    def __init__(self, *batches: tuple[list[int], list[list[int]], list[list[int]]]) -> None:
        self.batches = batches

    def logits(self, call: Call) -> Iterator[LogitBatch]:
        for rows, ids, guesses in self.batches:
            flat = [g for guess in guesses for g in guess]
            logits = torch.zeros(len(flat), VOCAB)
            logits[torch.arange(len(flat)), torch.tensor(flat)] = 4.0
            yield LogitBatch(rows, ids, logits)

    def generate(self, prompts: Sequence[str], options: Generation) -> list[str]:
        raise NotImplementedError


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer()(text)["input_ids"]


DOT, WORD = ids_of(".")[0], ids_of("a")[0]
STOPS = stop_tokens(tiny_tokenizer(), VOCAB)


def score(*batches: tuple[list[int], list[list[int]], list[list[int]]]) -> list:
    count = sum(len(b[0]) for b in batches)
    return score_call(Scripted(*batches), Call(("p",) * count, ("c",) * count), STOPS, tiny_tokenizer())


@pytest.mark.parametrize("text", [".", ",", "\n", " (", " and", " was", "?", "", "<|endoftext|>", "  ", "。", " »", " à", " и"])
def test_these_end_an_answer(text: str) -> None:
    assert ends_answer(text) is True


@pytest.mark.parametrize(
    "text", [" of", " York", "s", "-", " 7", "7", " de", "'", "é", " -", " Élysées", " Город", "ी", "·", "的"]
)
def test_these_carry_an_answer_on(text: str) -> None:
    assert ends_answer(text) is False


@pytest.mark.parametrize("text", [" ", "\u3000", "\ufffd", " \ufffd"])
def test_part_of_a_word_does_not_tell(text: str) -> None:
    assert ends_answer(text) is None


def test_special_tokens_stop_and_ids_beyond_the_tokenizer_do_not() -> None:
    stops = stop_tokens(tiny_tokenizer(), VOCAB + 5)
    assert stops[tiny_tokenizer().eos_token_id]
    assert stops.shape == (VOCAB + 5,)
    assert not stops[VOCAB:].any()


def test_all_tokens_right_and_a_stop_is_exact() -> None:
    answer = score(([0], [[7, 8]], [[7, 8, DOT]]))[0]
    assert answer.exact
    assert (answer.token_accuracy, answer.margin) == (1.0, 4.0)


def test_a_right_answer_that_runs_on_is_not_exact() -> None:
    answer = score(([0], [[7, 8]], [[7, 8, WORD]]))[0]
    assert not answer.exact
    assert answer.token_accuracy == 1.0


def test_one_wrong_token_is_not_exact_and_has_a_negative_margin() -> None:
    answer = score(([0], [[7, 8]], [[7, 9, DOT]]))[0]
    assert not answer.exact
    assert (answer.token_accuracy, answer.margin) == (0.5, -4.0)


def test_log_prob_is_the_sum_over_the_answer_without_its_stop() -> None:
    one = torch.log_softmax(torch.tensor([4.0] + [0.0] * (VOCAB - 1)), 0)
    answer = score(([0], [[7, 8]], [[7, 9, DOT]]))[0]
    assert answer.log_prob == pytest.approx(float(one[0] + one[1]), rel=1e-5)


def test_rows_come_back_in_the_order_of_the_call() -> None:
    answers = score(([2, 0], [[7], [7, 8, 9]], [[7, DOT], [7, 8, 9, DOT]]), ([1], [[5, 6]], [[5, 1, DOT]]))
    assert [a.exact for a in answers] == [True, False, True]
    assert [a.token_accuracy for a in answers] == [1.0, 0.5, 1.0]


def test_an_empty_continuation_is_scored_as_not_exact() -> None:
    answer = score(([0], [[]], [[DOT]]))[0]
    assert not answer.exact
    assert answer.log_prob == 0.0
