"""What prompts begin with alike runs once, and every row answers as if it had been run whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from editors.asking import prefixes, runner
from editors.asking.calls import Call
from editors.asking.prefixes import LEAST_SAVED, LEAST_TOKENS, Group, prefix_groups
from editors.asking.tokens import EncodedRow, continuation_of, encode_prompts
from editors.model import EditableModel, Undo
from editors.patches.slots import opened_tokens
from editors.presets import load_editor
from editors.session import run_edits
from tests.support import SIX_REQUESTS, TEXTS, prepared_once, tiny_model, tiny_tokenizer
from warehouse.questions import Question

EXAMPLES = "Japan: Tokyo. France: Paris. Poland: Maida Vale. Brazil: London. Ada Lovelace was born in London.\n"
OTHERS = "Where was Émile Zola born? Paris. Where was Alan Turing born? Maida Vale. Where was this person born?\n"
PROMPTS = tuple(r.prompt for r in SIX_REQUESTS)
ANSWERS = tuple(continuation_of(r.target_new) for r in SIX_REQUESTS)
#: Six rows behind each of two lists of examples, and six bare ones.
CALL = Call((*(EXAMPLES + p for p in PROMPTS), *PROMPTS, *(OTHERS + p for p in PROMPTS)), ANSWERS * 3)


def mistral() -> EditableModel:
    """A Llama-like model with rotary positions whose tokens see only the last sixteen."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, max_position_embeddings=128, initializer_range=0.1, sliding_window=16,
        bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return EditableModel(MistralForCausalLM(config), tiny_tokenizer(), name="tiny-mistral")


KINDS: dict[str, Callable[[], EditableModel]] = {
    "gpt2": lambda: tiny_model("gpt2"),
    "llama": lambda: tiny_model("llama"),
    "sliding": mistral,
}


def whole(model: EditableModel) -> Undo:
    """Have every row run whole until the undo: a hook that may read all of a row's tokens."""
    return model.hook(model.anatomy.block.format(layer=0), lambda _module, _inputs, _output: None)


@torch.inference_mode()
def logits(model: EditableModel, call: Call) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for batch in model.runner.logits(call):
        found |= zip(batch.rows, batch.logits.split([len(ids) + 1 for ids in batch.ids]), strict=True)
    return found


def both(model: EditableModel, call: Call) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    shared, undo = logits(model, call), whole(model)
    try:
        return shared, logits(model, call)
    finally:
        undo()


def assert_alike(model: EditableModel, call: Call) -> None:
    shared, apart = both(model, call)
    assert sorted(shared) == sorted(apart) == list(range(len(call.prompts)))
    for row in apart:
        torch.testing.assert_close(shared[row], apart[row], rtol=0, atol=1e-4)


def passes(model: EditableModel, call: Call) -> list[tuple[int, int]]:
    """(rows, tokens) of every pass."""
    seen: list[tuple[int, int]] = []
    handle = model.hf.base_model.register_forward_pre_hook(
        lambda _m, _a, named: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    logits(model, call)
    handle.remove()
    return seen


def row(prompt: Sequence[int], answer: Sequence[int] = (7, 8)) -> EncodedRow:
    return EncodedRow([*prompt, *answer], len(prompt), [])


# ------------------------------------------------------------ which rows share


def most_saved(heads: list[list[int]], length: int, least: int) -> int:
    """The best saving by trying both at every branching: one group, or each branch by itself."""
    if len(heads) < 2:
        return 0
    while len({tuple(h[: length + 1]) for h in heads}) == 1 and len(heads[0]) > length:
        length += 1
    branches: dict[tuple[int, ...], list[list[int]]] = {}
    for head in heads:
        if len(head) > length:
            branches.setdefault(tuple(head[: length + 1]), []).append(head)
    apart = sum(most_saved(inside, length + 1, least) for inside in branches.values())
    return max(apart, (len(heads) - 1) * length - LEAST_SAVED if length >= least else 0)


@given(st.lists(st.lists(st.integers(0, 2), max_size=4).map(lambda deep: [d for d in deep for _ in range(12)]), max_size=24))
@settings(max_examples=200, deadline=None)
def test_groups_share_what_they_say_and_save_the_most(prompts: list[list[int]]) -> None:
    rows = [row([*prompt, 5]) for prompt in prompts]
    groups, others = prefix_groups(rows, 128)
    assert sorted([*others, *(i for g in groups for i in g.rows)]) == list(range(len(rows)))
    assert others == sorted(others)
    for group in groups:
        first = rows[group.rows[0]].ids[: group.length]
        assert group.length >= LEAST_TOKENS
        assert all(rows[i].ids[: group.length] == first and rows[i].start > group.length for i in group.rows)
    saved = sum((len(g.rows) - 1) * g.length - LEAST_SAVED for g in groups)
    assert saved == most_saved([p for p in prompts if len(p) >= LEAST_TOKENS], 0, LEAST_TOKENS)


def test_two_lists_of_examples_are_two_groups_though_they_begin_alike() -> None:
    start = list(range(30))
    rows = [row([*start, *([10 + i // 5] * 40), 60 + i]) for i in range(10)]
    assert prefix_groups(rows, 128) == ([Group(70, (0, 1, 2, 3, 4)), Group(70, (5, 6, 7, 8, 9))], [])


def test_a_short_or_rare_beginning_is_not_worth_a_pass() -> None:
    short = [row([*range(LEAST_TOKENS - 1), 60 + i]) for i in range(20)]
    rare = [row([*range(100, 160), 60 + i]) for i in range(2)]
    assert prefix_groups([*short, *rare], 128) == ([], list(range(22)))


def test_a_row_beyond_the_context_shares_nothing() -> None:
    """It loses its left end, and so the prefix."""
    rows = [row([*range(50), 60 + i, *([9] * (i * 20))]) for i in range(6)]
    assert prefix_groups(rows, 103) == ([Group(50, (0, 1, 2))], [3, 4, 5])


def test_the_last_prompt_token_is_never_in_the_prefix() -> None:
    """Of one prompt with several answers it predicts each of them."""
    rows = [row(range(40), [answer, 9]) for answer in range(5)]
    assert prefix_groups(rows, 128) == ([Group(39, (0, 1, 2, 3, 4))], [])


# ------------------------------------------------------------ what they answer


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_runs_once_and_only_what_follows_it_for_each_row(kind: str) -> None:
    model = KINDS[kind]()
    seen = passes(model, CALL)
    heads = [len(ids) for ids in encode_prompts(model.tokenizer, [EXAMPLES, OTHERS])]
    assert sorted(tokens for rows, tokens in seen if rows == 1) == sorted(heads)
    assert sum(rows for rows, _ in seen) == len(CALL.prompts) + 2
    assert_alike(model, CALL)
    undo = whole(model)
    assert sum(rows for rows, _ in passes(model, CALL)) == len(CALL.prompts)
    undo()
    assert passes(model, CALL) == seen


def test_a_pass_behind_a_long_prefix_has_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefix's keys are laid before each of them."""
    model, call = tiny_model("llama"), Call(tuple(EXAMPLES + p for p in PROMPTS), ANSWERS)
    monkeypatch.setattr(runner, "TOKENS_PER_BATCH", {"cpu": 120})
    assert max(rows for rows, _ in passes(model, call)) == 6
    monkeypatch.setattr(runner, "WHOLE_PER_TOKEN", 1)
    (_, before), *behind = passes(model, call)
    assert max(rows for rows, _ in behind) > 1 and all(rows * (before + tokens) <= 120 for rows, tokens in behind)
    assert_alike(model, call)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_any_rows_behind_any_prefixes_answer_as_if_run_whole(kind: str, data: st.DataObject) -> None:
    text = " ".join(TEXTS)
    begins = st.tuples(st.integers(0, 60), st.integers(60, 220)).map(lambda cut: text[cut[0] : cut[0] + cut[1]])
    prompts, answers = [], []
    for begin in data.draw(st.lists(begins, min_size=1, max_size=3)):
        for rest in data.draw(st.lists(st.integers(1, 90), min_size=2, max_size=9)):
            prompts.append(begin + text[-rest:])
            answers.append(continuation_of(data.draw(st.sampled_from(["Paris", "New York City", "Łódź"]))))
    assert_alike(KINDS[kind](), Call(tuple(prompts), tuple(answers)))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ["ledger", "r_rome", "ft_m", "grace", "t_patcher", "wise", "cnp", "serac", "ice"])
def test_an_edited_model_answers_as_if_every_row_were_run_whole(name: str, kind: str) -> None:
    """Weights, slots, neurons, codebooks; routers that read a whole prompt, for which nothing is shared; wrapped calls."""
    model = tiny_model(kind)
    editor = load_editor(name, model)
    for _ in run_edits(editor, model, SIX_REQUESTS[:3], prepared_once(editor, model), mode="sequential"):
        pass
    assert model.shares_prefixes is (name not in {"wise", "cnp"})
    assert_alike(model, CALL)
    # An edited prompt, word for word, behind examples: there a memory's key is another one than in the request.
    shared = model.score([Question(p, a.strip()) for p, a in zip(CALL.prompts, CALL.continuations, strict=True)])
    undo = whole(model)
    apart = model.score([Question(p, a.strip()) for p, a in zip(CALL.prompts, CALL.continuations, strict=True)])
    undo()
    assert [a.exact for a in shared] == [a.exact for a in apart]
    model.rollback(0)
    assert model.shares_prefixes


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_memory_answers_at_a_prompts_last_token_behind_a_shared_prefix(kind: str) -> None:
    model = tiny_model(kind)
    editor = load_editor("grace", model)
    asked = SIX_REQUESTS[0].model_copy(update={"prompt": EXAMPLES + SIX_REQUESTS[0].prompt})
    before = logits(model, CALL)
    for _ in run_edits(editor, model, [asked], prepared_once(editor, model), mode="sequential"):
        pass
    assert model.shares_prefixes and min(rows for rows, _ in passes(model, CALL)) == 1
    after = logits(model, CALL)
    assert not torch.allclose(before[0], after[0], atol=1e-2)
    assert_alike(model, CALL)


def with_slots(kind: str) -> EditableModel:
    model = tiny_model(kind)
    editor = load_editor("ledger", model)
    for _ in run_edits(editor, model, SIX_REQUESTS[:3], prepared_once(editor, model), mode="sequential-batch", batch_size=3):
        pass
    return model


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_slots_open_inside_of_a_shared_prefix(kind: str) -> None:
    """The subject of an edit is named in an example: what the example says has changed for every row behind it."""
    model = with_slots(kind)
    named = Call(tuple(f"{SIX_REQUESTS[1].prompt} {EXAMPLES}{p}" for p in PROMPTS), ANSWERS)
    base = logits(tiny_model(kind), named)
    assert min(rows for rows, _ in passes(model, named)) == 1
    edited = logits(model, named)
    assert all(not torch.equal(base[i], edited[i]) for i in base)
    assert_alike(model, named)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_text_that_opens_no_slot_answers_bit_for_bit_as_the_base(kind: str) -> None:
    model = with_slots(kind)
    call = Call((*(f"1999, 2001, 2003, 2005, 2007, 2009, 2011: {p}" for p in PROMPTS), *PROMPTS), ANSWERS * 2)
    assert min(rows for rows, _ in passes(model, call)) == 1
    texts = [prompt + answer for prompt, answer in zip(call.prompts, call.continuations, strict=True)]
    opened = [count > 0 for count, _ in opened_tokens(model, texts) or []]
    base, edited = logits(tiny_model(kind), call), logits(model, call)
    assert [not torch.equal(base[i], edited[i]) for i in range(len(texts))] == opened
    assert 0 < sum(opened) < len(opened)


def test_a_call_in_which_nothing_is_shared_is_computed_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model, bare = tiny_model("gpt2"), Call(PROMPTS, ANSWERS)
    shared = logits(model, bare)
    monkeypatch.setattr(prefixes, "LEAST_TOKENS", 10_000)
    apart = logits(model, bare)
    assert all(torch.equal(shared[i], apart[i]) for i in shared)
