"""Steady passes: what else is asked, and in which order, never shows in an answer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editors.asking.calls import Call
from editors.asking.runner import PlainRunner
from editors.asking.scoring import score_call, score_rows
from editors.asking.steady import SteadyRunner, is_steady
from editors.model import EditableModel
from tests.support import SIX_REQUESTS, TEXTS, tiny_model

EVERY_KIND = ("gpt2", "llama")
PROMPTS = [p for r in SIX_REQUESTS for p in (r.prompt, *r.rephrases)] + [text[:n] for text in TEXTS for n in (9, 30, 51)]
CALL = Call(tuple(PROMPTS), tuple(f" {r.target_new}" for r in SIX_REQUESTS for _ in range(2)) + (" river",) * 15)


def ask(model: EditableModel, call: Call, **how: bool) -> list:
    with torch.inference_mode():
        return score_call(SteadyRunner(model, PlainRunner(model), **how), call, model.stops, model.tokenizer)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_an_answer_is_the_same_whatever_else_is_asked(kind: str) -> None:
    model = tiny_model(kind)
    whole = ask(model, CALL)

    @settings(max_examples=12, deadline=None)
    @given(st.lists(st.sampled_from(range(len(PROMPTS))), min_size=1, max_size=30))
    def law(rows: list[int]) -> None:
        assert ask(model, CALL.select(rows)) == [whole[i] for i in rows]

    law()


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_steady_answers_are_the_plain_ones_to_rounding(kind: str) -> None:
    model = tiny_model(kind)
    with torch.inference_mode():
        plain = score_call(PlainRunner(model), CALL, model.stops, model.tokenizer)
    for how in ({}, {"alone": True}):
        for one, other in zip(ask(model, CALL, **how), plain, strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
            assert (one.exact, one.token_accuracy, one.argmax_text) == (other.exact, other.token_accuracy, other.argmax_text)


def test_a_row_beyond_the_context_is_cut_as_the_plain_runner_cuts_it() -> None:
    model = tiny_model()
    long = Call((" ".join(TEXTS * 6), ""), (" Paris", " " + " ".join(TEXTS * 6)))
    with torch.inference_mode():
        steady = list(SteadyRunner(model, PlainRunner(model)).logits(long))
        plain = {row: ids for batch in PlainRunner(model).logits(long) for row, ids in zip(batch.rows, batch.ids, strict=True)}
        said = {row: a for row, a in enumerate(score_call(PlainRunner(model), long, model.stops, model.tokenizer))}
    assert {row: ids for batch in steady for row, ids in zip(batch.rows, batch.ids, strict=True)} == plain
    assert [a.log_prob for a in ask(model, long)] == pytest.approx([said[0].log_prob, said[1].log_prob], abs=1e-3)


def test_a_model_whose_rows_show_their_place_is_found_out() -> None:
    model = tiny_model()
    assert is_steady(model, PlainRunner(model))

    def by_place(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output + torch.arange(len(output))[:, None, None] * 1e-3

    model.hook("transformer.h.1.mlp", by_place)
    assert not is_steady(model, PlainRunner(model))


def test_rows_that_had_to_be_generated_are_named() -> None:
    """Their answers depend on what is written behind them, which the tokens of the row do not hold."""
    model = tiny_model()
    spaces = [i for i in range(model.vocab_size) if model.tokenizer.decode([i]) == " "]
    head = model.hf.get_output_embeddings()
    call = Call(("The capital of France is",), (" Paris",))
    ids = SteadyRunner(model, PlainRunner(model)).encode(call)[0]
    forced = [*ids.ids[ids.start :], *spaces][: len(ids.ids) - ids.start + 1]

    def say(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        if output.ndim == 3:  # what is generated
            return output
        for at, token in enumerate(forced):
            output[at, token] = 1e4
        return output

    assert head is not None and spaces
    undo = head.register_forward_hook(say)
    with torch.inference_mode():
        answers, generated = score_rows(SteadyRunner(model, PlainRunner(model)), call, model.stops, model.tokenizer)
    undo.remove()
    assert answers[0].token_accuracy == 1.0 and generated == {0}
