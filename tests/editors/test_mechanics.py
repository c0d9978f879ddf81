"""Shared mechanics against slow, obvious forms of the same thing."""

from __future__ import annotations

import pytest
import torch

from editors.asking.tokens import pad_right
from editors.base import Corpus
from editors.errors import InvalidRequest
from editors.mechanics.contexts import encode_lookups, sample_contexts
from editors.mechanics.second_moment import (
    STRIP,
    WideFactors,
    gram,
    measure_moments,
    prepare_locate,
    read_preparation,
    ridged_factor,
)
from editors.mechanics.trace import trace
from editors.model import EditableModel
from editors.patches.weight import LowRank, WeightPatch
from editors.targets.keys_values import lookup_states
from editors.views import at_base
from tests.editors.locating import CONTEXTS, config, positive
from tests.support import CORPUS, SIX_REQUESTS, tiny_model

# ------------------------------------------------------------ lookup


@pytest.mark.parametrize("number", range(len(SIX_REQUESTS)))
def test_lookup_token_is_the_one_that_holds_the_subjects_last_character(tiny: EditableModel, number: int) -> None:
    r = SIX_REQUESTS[number]
    for prompt in CONTEXTS.fill(r.prompt):
        (row,) = encode_lookups(tiny, [prompt], [r.subject], [" " + r.target_new])
        behind = tiny.tokenizer.decode(row.ids[: row.lookup + 1])
        before = tiny.tokenizer.decode(row.ids[: row.lookup])
        assert behind.endswith(r.subject)
        assert not before.endswith(r.subject)
        assert tiny.tokenizer.decode(row.ids[row.start :]) == " " + r.target_new


def test_a_context_that_names_the_subject_does_not_move_the_lookup_token(tiny: EditableModel) -> None:
    plain, longer = encode_lookups(tiny, ["France lies in", "France is big. France lies in"], ["France"] * 2, ["", ""])
    assert len(longer.ids) - longer.lookup == len(plain.ids) - plain.lookup


def test_a_target_that_holds_the_subject_does_not_move_the_lookup_token(tiny: EditableModel) -> None:
    a, b = encode_lookups(tiny, ["The capital of France is"] * 2, ["France"] * 2, [" Tokyo", " France"])
    assert a.lookup == b.lookup


def test_a_row_longer_than_the_context_keeps_its_right_end(tiny: EditableModel) -> None:
    (row,) = encode_lookups(tiny, ["river " * 200 + "France lies in"], ["France"], [" Japan"])
    assert len(row.ids) == tiny.hf.config.max_position_embeddings
    assert tiny.tokenizer.decode(row.ids[row.start :]) == " Japan"
    with pytest.raises(InvalidRequest, match="shorten the prompt"):
        encode_lookups(tiny, ["France " + "river " * 200], ["France"], [""])


def test_a_subject_outside_its_prompt_is_named_in_the_error(tiny: EditableModel) -> None:
    with pytest.raises(InvalidRequest, match="'Spain'"):
        encode_lookups(tiny, ["France lies in"], ["Spain"], [""])


def test_contexts_come_from_the_base_model_and_repeat_with_the_seed() -> None:
    model = tiny_model()
    first = sample_contexts(model, [(3, 4), (2, 6)], seed=5)
    assert first == sample_contexts(model, [(3, 4), (2, 6)], seed=5)
    assert first != sample_contexts(model, [(3, 4), (2, 6)], seed=6)
    assert first.templates[0] == "{}" and first.groups == (0, 1, 1, 1, 2, 2)
    assert all(t.count("{}") == 1 and "{" not in t.replace("{}", "") for t in first.templates)


def test_grouped_weights_let_every_group_count_once() -> None:
    assert CONTEXTS.weights("grouped").tolist() == [0.5, 0.25, 0.25]
    assert CONTEXTS.weights("flat").sum().item() == pytest.approx(1.0)


# ------------------------------------------------------------ traces, keys and values


def test_trace_leaves_no_hook_behind_even_when_it_stops_early(tiny: EditableModel) -> None:
    module = tiny.hf.get_submodule(tiny.anatomy.block.format(layer=1))
    ids, mask = pad_right([[5, 6, 7]], tiny.pad_id)
    before = (len(module._forward_hooks), len(module._forward_pre_hooks))
    path = tiny.anatomy.block.format(layer=1)
    seen = trace(tiny, ids, mask, outputs=(path,), calls=(path,), stop_after=path)
    assert seen.final is None and seen.outputs[path].shape == (1, 3, 32)
    assert (len(module._forward_hooks), len(module._forward_pre_hooks)) == before


def test_lookup_states_equal_a_full_pass_of_each_row_alone(tiny: EditableModel) -> None:
    states = lookup_states(tiny, SIX_REQUESTS, CONTEXTS, tiny.anatomy.mlp_out, 2)
    path = tiny.anatomy.mlp_out.format(layer=2)
    for i, r in enumerate(SIX_REQUESTS):
        for c, prompt in enumerate(CONTEXTS.fill(r.prompt)):
            (row,) = encode_lookups(tiny, [prompt], [r.subject], [""])
            seen = trace(tiny, *pad_right([row.ids], tiny.pad_id), inputs=(path,), outputs=(path,))
            torch.testing.assert_close(states.inputs[i, c], seen.inputs[path][0, row.lookup], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(states.outputs[i, c], seen.outputs[path][0, row.lookup], rtol=1e-4, atol=1e-5)


def test_averaged_keys_and_values_still_correspond(tiny: EditableModel) -> None:
    states = lookup_states(tiny, SIX_REQUESTS, CONTEXTS, tiny.anatomy.mlp_out, 1)
    keys, values = states.averaged(CONTEXTS.weights("grouped"))
    module = tiny.hf.get_submodule(tiny.anatomy.mlp_out.format(layer=1))
    torch.testing.assert_close(module(keys), values, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------ second moment


def test_second_moment_is_the_average_of_outer_products(tiny: EditableModel) -> None:
    moments = measure_moments(tiny, CORPUS.texts, (2, 0), 10_000)
    for layer in (0, 2):
        path = tiny.anatomy.mlp_out.format(layer=layer)
        total, count = torch.zeros(96, 96, dtype=torch.float64), 0
        for text in CORPUS.texts:
            ids = tiny.tokenizer(text)["input_ids"]
            for key in trace(tiny, *pad_right([ids], tiny.pad_id), inputs=(path,)).inputs[path][0].double():
                total += torch.outer(key, key)
                count += 1
        assert moments.tokens == count
        torch.testing.assert_close(moments.second[layer], total / count, rtol=1e-4, atol=1e-6)


def test_products_in_strips_are_those_of_the_whole_matrix() -> None:
    keys = torch.randn(40, 2 * STRIP + 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram(keys), keys.t() @ keys, rtol=1e-4, atol=1e-4)


def test_second_moment_stops_at_the_asked_number_of_tokens(tiny: EditableModel) -> None:
    assert measure_moments(tiny, CORPUS.texts, (1,), 37).tokens == 37
    with pytest.raises(ValueError, match="no token"):
        measure_moments(tiny, (), (1,), 37)


def test_preparation_is_of_the_base_even_when_patches_are_on() -> None:
    model = tiny_model()
    settings = config(contexts=((2, 3),), second_moment_tokens=200)
    clean = prepare_locate(model, CORPUS, (0, 1), settings)
    model.push(WeightPatch({"transformer.h.0.mlp.c_proj.weight": LowRank(torch.ones(32, 1), torch.ones(96, 1))}))
    patched, digest = model.state_digest(), model.digest
    with at_base(model):
        assert model.digest != digest
    assert prepare_locate(model, CORPUS, (0, 1), settings).digest == clean.digest
    assert model.state_digest() == patched


def test_preparation_without_a_layer_says_prepare_again() -> None:
    model = tiny_model()
    prepared = prepare_locate(model, Corpus(("a b c",)), (0,), config(contexts=()))
    with pytest.raises(ValueError, match=r"\[2\]"):
        read_preparation(prepared, (0, 2), model.device)


def test_a_wide_factor_is_held_where_it_is_the_only_one_and_each_is_as_it_was_stored() -> None:
    stored = {layer: torch.randn(4, 4, generator=torch.Generator().manual_seed(layer)) for layer in (0, 1)}
    several, alone = WideFactors(stored, torch.device("cpu")), WideFactors({1: stored[1]}, torch.device("cpu"))
    assert torch.equal(several[0], stored[0].double()) and torch.equal(several[1], stored[1].double())
    assert several[0] is not several[0] and alone[1] is alone[1]
    assert list(several) == [0, 1] and len(several) == 2
    with pytest.raises(KeyError):
        alone[0]


def test_only_what_preparation_depends_on_changes_its_key() -> None:
    base = config()
    assert base.preparation_digest((0, 1)) == config(value_steps=3, clamp_norm=2.0).preparation_digest((0, 1))
    for other in (config(seed=1), config(contexts=((2, 2),)), config(second_moment_ridge=0.5)):
        assert other.preparation_digest((0, 1)) != base.preparation_digest((0, 1))
    assert base.preparation_digest((0, 1, 2)) != base.preparation_digest((0, 1))


def test_ridge_is_relative_to_the_mean_diagonal() -> None:
    second = positive(7)
    factor = ridged_factor(second, 0.1)
    torch.testing.assert_close(factor @ factor.t(), second + 0.1 * second.trace() / 7 * torch.eye(7, dtype=torch.float64))
    with pytest.raises(ValueError, match="second_moment_ridge"):
        ridged_factor(-second, 0.1)
