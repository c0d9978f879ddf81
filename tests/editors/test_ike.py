"""IKE: what is stated before which prompt, which demonstrations stand beside it, and the contrast."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from editors.asking.calls import Call, Generation
from editors.base import Prepared
from editors.errors import InvalidRequest, PatchError
from editors.in_context.ike import Ike, IkeConfig, demonstrations_of, kinds_of
from editors.model import EditableModel
from editors.nets.scope import ScopeConfig
from editors.patches.in_context import InContextRunner, contrasted
from editors.patches.retrieved import MEMORY, RetrievedPromptPatch
from editors.presets import load_editor
from editors.session import batch_of, run_edits
from tests.support import CORPUS, SIX_REQUESTS, TRAINING_EDITS, request, tiny_model
from warehouse.records import EditRequest

CONFIG = IkeConfig(token_layer=0, prompt_layer=2)


@cache
def prepared() -> Prepared:
    model = tiny_model()
    return load_editor("ike", model).prepare(model, CORPUS)


def edited(model: EditableModel, *requests: EditRequest, **overrides: object) -> list[RetrievedPromptPatch]:
    editor = load_editor("ike", model, overrides)
    return [s.patch for s in run_edits(editor, model, requests, prepared(), mode="sequential")]  # type: ignore[misc]


class Fixed:
    """States one text before prompts that hold a word."""

    def __init__(self, contrast: float) -> None:
        self.contrast = contrast

    def prefixes(self, prompts: object) -> list[str]:
        return ["New fact: Ada is Paris. " if "Ada" in p else "" for p in prompts]  # type: ignore[attr-defined]


# ------------------------------------------------------------ demonstrations


def test_any_number_of_demonstrations_keeps_the_published_ratio() -> None:
    assert [kinds_of(CONFIG, 8).count(kind) for kind in range(3)] == [1, 3, 4]
    assert [kinds_of(CONFIG, 32).count(kind) for kind in range(3)] == [4, 12, 16]
    assert kinds_of(CONFIG, 3) == kinds_of(CONFIG, 32)[:3]


def test_demonstrations_copy_update_and_retain() -> None:
    copy, update, retain = demonstrations_of(TRAINING_EDITS[0], CONFIG)
    fact = "New fact: Anne Isabella Byron was born in Tokyo."
    assert copy == f"{fact} Anne Isabella Byron was born in Tokyo."
    assert update == f"{fact} The birthplace of Anne Isabella Byron is Tokyo."
    assert retain == f"{fact} Anne Isabella Byron died in Wilmslow."


def test_the_fact_stands_first_unless_told_otherwise(tiny: EditableModel) -> None:
    fact = "New fact: Ada Lovelace was born in Paris."
    first = edited(tiny, SIX_REQUESTS[0])[0].facts[0].prefix
    tiny.rollback(0)
    last = edited(tiny, SIX_REQUESTS[0], fact_first=False)[0].facts[0].prefix
    assert first.startswith(fact) and last.endswith(fact)
    assert len(first) == len(last) > len(fact)


def test_a_prefix_fills_no_more_than_its_share_of_the_context(tiny: EditableModel) -> None:
    wide = edited(tiny, SIX_REQUESTS[0], context_share=1.0)[0].facts[0].prefix
    tiny.rollback(0)
    narrow = edited(tiny, SIX_REQUESTS[0], context_share=0.25)[0].facts[0].prefix
    assert len(narrow) < len(wide)
    assert narrow == "New fact: Ada Lovelace was born in Paris."


def test_no_demonstrations_leave_the_fact_alone(tiny: EditableModel) -> None:
    assert edited(tiny, SIX_REQUESTS[0], demonstrations=0)[0].facts[0].prefix == "New fact: Ada Lovelace was born in Paris."


# ------------------------------------------------------------ scope


def test_a_prompt_out_of_scope_is_read_as_it_is(tiny: EditableModel) -> None:
    edited(tiny, SIX_REQUESTS[0])
    store = tiny.memories[MEMORY]
    prefix, nothing = store.prefixes([SIX_REQUESTS[0].prompt, "A small boat went up the"])
    assert prefix.startswith("New fact: Ada Lovelace") and prefix.endswith(" ")
    assert nothing == ""


def test_the_newest_fact_of_a_slot_is_stated(tiny: EditableModel) -> None:
    edited(tiny, SIX_REQUESTS[0], SIX_REQUESTS[0].model_copy(update={"request_id": "newer", "target_new": "Tokyo"}))
    assert "Tokyo" in tiny.memories[MEMORY].prefixes([SIX_REQUESTS[0].prompt])[0]
    tiny.rollback(1)
    assert "Paris" in tiny.memories[MEMORY].prefixes([SIX_REQUESTS[0].prompt])[0]


def test_the_first_patch_of_a_stack_carries_the_retriever(tiny: EditableModel) -> None:
    first, second = edited(tiny, *SIX_REQUESTS[:2])
    assert first.retriever and not second.retriever
    tiny.rollback(0)
    with pytest.raises(PatchError, match="first patch of its stack"):
        tiny.push(second)


def test_a_target_with_line_breaks_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(InvalidRequest, match="r1"):
        load_editor("ike", tiny).edit(tiny, batch_of([request(1, "Ada Lovelace", "Paris\nLondon")]), prepared())


def test_the_key_covers_the_retriever_but_not_the_contrast() -> None:
    key = Ike(CONFIG).preparation_key()
    assert key == Ike(CONFIG.model_copy(update={"contrast": 2.0})).preparation_key()
    for field in ScopeConfig.model_fields:
        assert f"{field}=" in key
    assert key != Ike(CONFIG.model_copy(update={"scope_updates": 7})).preparation_key()


# ------------------------------------------------------------ contrast


def test_contrast_weighs_the_statement_against_the_prior() -> None:
    stated, plain = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0]])
    expected = 1.5 * stated.log_softmax(-1) - 0.5 * plain.log_softmax(-1)
    torch.testing.assert_close(contrasted(stated, plain, 0.5), expected)
    assert int(contrasted(stated, plain, 2.0).argmax()) == 1


def test_scores_are_the_two_contexts_combined(tiny: EditableModel) -> None:
    prompts = ("Ada was born in", "The capital of France is")
    base, stated = (tiny.next_token_log_probs(p) for p in (prompts, ("New fact: Ada is Paris. Ada was born in",)))
    alone = tiny.next_token_log_probs(prompts[1:])
    tiny.wrap(lambda inner: InContextRunner(inner, tiny, Fixed(0.5)))
    found = tiny.next_token_log_probs(prompts)
    expected = torch.tensor(1.5 * stated[0] - 0.5 * base[0]).log_softmax(-1)
    torch.testing.assert_close(torch.tensor(found[0]), expected, rtol=1e-4, atol=1e-4)
    assert (found[1] == alone[0]).all()


def test_rows_keep_their_continuations(tiny: EditableModel) -> None:
    tiny.wrap(lambda inner: InContextRunner(inner, tiny, Fixed(0.5)))
    call = Call(("Ada was born in", "It lies in", "Ada lives in"), (" Tokyo Paris", " Poland", " Paris"))
    seen = {row: ids for batch in tiny.runner.logits(call) for row, ids in zip(batch.rows, batch.ids, strict=True)}
    assert [tiny.tokenizer.decode(seen[row]) for row in range(3)] == list(call.continuations)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_generation_follows_the_combined_scores(tiny: EditableModel, use_cache: bool) -> None:
    tiny.wrap(lambda inner: InContextRunner(inner, tiny, Fixed(0.5)))
    prompts = ["Ada was born in", "The mother of Ada Lovelace is"]
    said = tiny.runner.generate(prompts, Generation(4, use_cache=use_cache))
    for prompt, text in zip(prompts, said, strict=True):
        first = int(tiny.next_token_log_probs([prompt])[0].argmax())
        assert text.startswith(str(tiny.tokenizer.decode([first], skip_special_tokens=True)))
    assert tiny.positions is None


def test_without_contrast_generation_is_that_of_the_stated_prompt(tiny: EditableModel) -> None:
    expected = tiny.generate(["New fact: Ada is Paris. Ada was born in"], 5)
    tiny.wrap(lambda inner: InContextRunner(inner, tiny, Fixed(0.0)))
    assert tiny.generate(["Ada was born in"], 5) == expected


def test_sampling_repeats_under_one_seed_and_moves_no_other_stream(tiny: EditableModel) -> None:
    tiny.wrap(lambda inner: InContextRunner(inner, tiny, Fixed(0.5)))
    options = Generation(6, sample=True, seed=3)
    state = torch.random.get_rng_state()
    assert tiny.runner.generate(["Ada was born in"], options) == tiny.runner.generate(["Ada was born in"], options)
    assert torch.equal(state, torch.random.get_rng_state())
