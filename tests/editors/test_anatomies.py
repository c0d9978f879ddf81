"""Every architecture of the table: states are where it says, and a change there is the change that the editors count on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from editors.architectures.anatomies import ANATOMIES, REFUSED, anatomy_of
from editors.asking.calls import Call, Generation
from editors.asking.tokens import continuation_of, encode_rows, pad_right
from editors.base import Editor, Prepared
from editors.errors import UnsupportedModel
from editors.export.form import OF_BEFORE
from editors.export.plain import plain_model as exported
from editors.ledger.subject_values import solve_subject
from editors.mechanics.contexts import BARE, encode_lookups, encode_namings
from editors.mechanics.suffix import suffix_of
from editors.mechanics.trace import hidden_of, trace
from editors.model import EditableModel
from editors.patches.neurons import ACTIVATIONS, NeuronPatch, activation_of
from editors.patches.total import TotalPatch
from editors.patches.weight import LowRank, WeightPatch
from editors.presets import load_editor
from editors.session import batch_of
from editors.targets.keys_values import lookup_states
from editors.targets.objective import encode_edits
from editors.targets.two_latents import two_latent_objective
from tests.architectures import SHAPES, model_of, plain_model, tiny_editor
from tests.documents import ROOT, spans, table_rows, text_of
from tests.support import CORPUS, SIX_REQUESTS, tiny_model
from warehouse.questions import Question

PROMPTS = tuple(r.prompt for r in SIX_REQUESTS)
ANSWERS = tuple(continuation_of(r.target_new) for r in SIX_REQUESTS)
EXAMPLES = "Japan: Tokyo. France: Paris. Poland: Maida Vale. Brazil: London. Ada Lovelace was born in London.\n"
LAYER = 1
EVERY = pytest.mark.parametrize("name", SHAPES)


@cache
def tiny(name: str) -> EditableModel:
    """One model for all tests of this module; each takes off what it put on."""
    return model_of(name)


def rows_of(model: EditableModel) -> tuple[Tensor, Tensor]:
    """Prompts with their answers, right-padded (rows, tokens), and the mask."""
    return pad_right([row.ids for row in encode_rows(model.tokenizer, PROMPTS, ANSWERS)], model.pad_id)


def seen_at(model: EditableModel, *paths: str) -> dict[str, tuple[Tensor, Tensor]]:
    """(input, output) at the real tokens, (tokens, width), of module paths in `LAYER`."""
    ids, mask = rows_of(model)
    places = [path.format(layer=LAYER) for path in paths]
    seen, real = trace(model, ids, mask, inputs=places, outputs=places), mask.bool()
    return {path: (seen.inputs[at][real], seen.outputs[at][real]) for path, at in zip(paths, places, strict=True)}


def normed(model: EditableModel, path: str | None, states: Tensor) -> Tensor:
    return states if path is None else model.hf.get_submodule(path.format(layer=LAYER))(states)


def agree(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)


def test_the_table_and_the_tiny_models_name_the_same_types() -> None:
    types = {tiny(name).hf.config.model_type for name in SHAPES}
    assert types | {"gpt2", "llama"} == set(ANATOMIES)


def test_the_page_of_models_has_every_type_that_is_known_and_every_one_that_is_refused() -> None:
    page = text_of(ROOT / "docs" / "MODELS.md")
    assert {spans(row[0])[0] for row in table_rows(page, "| type |")} == set(ANATOMIES)
    assert {spans(row[0])[0] for row in table_rows(page, "| refused type |")} == set(REFUSED)


# ------------------------------------------------------------ what the table says of a block


@EVERY
@torch.no_grad()
def test_states_of_a_block_add_up_as_its_anatomy_says(name: str) -> None:
    model, a = tiny(name), tiny(name).anatomy
    reader = a.mlp if a.mlp_norm is None else a.mlp_norm
    paths = (a.block, a.attention_out, a.mlp, a.mlp_out, *a.mlp_in, *([] if a.mlp_norm is None else [a.mlp_norm]))
    seen = seen_at(model, *paths)
    start, end = seen[a.block]
    middle = start + normed(model, a.attention_post_norm, seen[a.attention_out][1])
    agree(seen[reader][0], start if a.parallel else middle)
    if a.mlp_norm is not None:
        agree(seen[a.mlp][0], seen[a.mlp_norm][1])
    assert all(torch.equal(seen[path][0], seen[a.mlp][0]) for path in a.mlp_in)
    assert torch.equal(seen[a.mlp][1], seen[a.mlp_out][1])
    agree(end, middle + normed(model, a.mlp_post_norm, seen[a.mlp_out][1]))
    inside = [part for path in a.mlp_in for part in seen[path][1].chunk(2 if a.gated and len(a.mlp_in) == 1 else 1, dim=-1)]
    act = ACTIVATIONS[activation_of(model)]
    agree(seen[a.mlp_out][0], act(inside[0]) * inside[1] if a.gated else act(inside[0]))
    assert len(inside) == 1 + a.gated
    assert getattr(model.hf.config, a.inner) == seen[a.mlp_out][0].shape[1]


@EVERY
@torch.no_grad()
def test_a_rank_one_write_changes_the_output_as_computed_by_hand(name: str) -> None:
    model, a = tiny(name), tiny(name).anatomy
    generator = torch.Generator().manual_seed(1)
    for path in (a.mlp_out, a.attention_out):
        (keys, before), (_, block) = (seen_at(model, path, a.block)[at] for at in (path, a.block))
        left, right = (0.3 * torch.randn(n, 1, generator=generator) for n in (before.shape[1], keys.shape[1]))
        state = model.state_digest()
        model.push(WeightPatch({path.format(layer=LAYER) + ".weight": LowRank(left, right)}))
        after, end = seen_at(model, path, a.block)[path][1], seen_at(model, a.block)[a.block][1]
        model.rollback(0)
        assert model.state_digest() == state
        change = (keys @ right) @ left.t()
        agree(after, before + change)
        post = a.mlp_post_norm if path == a.mlp_out else a.attention_post_norm
        through = normed(model, post, before + change) - normed(model, post, before)
        if path == a.mlp_out or a.parallel:
            agree(end, block + through)
        else:
            assert not torch.allclose(end, block + through, atol=1e-3), "the feed-forward did not read the attention's change"


@EVERY
@torch.no_grad()
def test_final_norm_head_and_embedding_are_where_the_table_says(name: str) -> None:
    model, a = tiny(name), tiny(name).anatomy
    ids, mask = rows_of(model)
    last = a.block.format(layer=a.num_layers(model.hf) - 1)
    seen = trace(model, ids, mask, outputs=(last, a.embedding), inputs=(a.embedding,))
    assert seen.final is not None
    assert torch.equal(model.hf.get_submodule(a.final_norm)(seen.outputs[last]), seen.final)
    assert torch.equal(seen.inputs[a.embedding], ids)
    assert seen.outputs[a.embedding].shape[-1] == a.d_model(model.hf) == seen.final.shape[-1]


# ------------------------------------------------------------ answers


@EVERY
@torch.inference_mode()
def test_scores_are_those_of_the_plain_model(name: str) -> None:
    model, plain = tiny(name), plain_model(name)
    ids, mask = rows_of(model)
    log_probs = plain(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    rows = encode_rows(model.tokenizer, PROMPTS, ANSWERS)
    found = model.score([Question(r.prompt, r.target_new) for r in SIX_REQUESTS])
    for number, (row, answer) in enumerate(zip(rows, found, strict=True)):
        wanted = sum(float(log_probs[number, at - 1, row.ids[at]]) for at in range(row.start, len(row.ids)))
        assert answer.log_prob == pytest.approx(wanted, abs=1e-4)
    agree(torch.tensor(model.next_token_log_probs(PROMPTS)),
          torch.stack([log_probs[number, row.start - 1] for number, row in enumerate(rows)]))  # fmt: skip


def logits(model: EditableModel, call: Call) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for batch in model.runner.logits(call):
        found |= zip(batch.rows, batch.logits.split([len(ids) + 1 for ids in batch.ids]), strict=True)
    return found


@EVERY
@torch.inference_mode()
def test_rows_behind_a_shared_beginning_answer_as_whole_rows(name: str) -> None:
    model = tiny(name)
    call = Call(tuple(EXAMPLES + p for p in PROMPTS), ANSWERS)
    shared = logits(model, call)
    undo = model.hook(model.anatomy.block.format(layer=0), lambda _module, _inputs, _output: None)
    try:
        whole = logits(model, call)
    finally:
        undo()
    for row in whole:
        torch.testing.assert_close(shared[row], whole[row], rtol=0, atol=1e-4)


@EVERY
def test_generation_is_the_same_with_the_cache_without_it_and_alone(name: str) -> None:
    model = tiny(name)
    # With a hook that has to know where the prompt ends.
    editor, prepared = prepared_for(name, "grace")
    model.push(editor.edit(model, batch_of(SIX_REQUESTS[:2]), prepared))
    try:
        cached = model.runner.generate(PROMPTS[:4], Generation(6))
        assert cached == model.runner.generate(PROMPTS[:4], Generation(6, use_cache=False))
        assert cached == [model.runner.generate([p], Generation(6))[0] for p in PROMPTS[:4]]
    finally:
        model.rollback(0)


@EVERY
def test_a_pass_of_a_generation_knows_how_many_tokens_are_in_the_cache(name: str) -> None:
    model, seen = tiny(name), []

    def note(_module: object, _inputs: object, output: object) -> None:
        assert model.positions is not None
        seen.append((model.positions.offset, hidden_of(output).shape[1]))

    undo = model.hook(model.anatomy.block.format(layer=0), note)
    try:
        model.runner.generate(PROMPTS[:1], Generation(3))
    finally:
        undo()
    (start, prompt), *steps = seen
    assert start == 0 and steps == [(prompt + number, 1) for number in range(len(steps))]
    assert steps, "it said nothing"


# ------------------------------------------------------------ cached passes


def adding(change: Tensor, at: Tensor) -> Callable[..., object]:
    """Adds each row's change at one token, or at all those that a mask (rows, tokens) names."""

    def hook(_module: object, _inputs: object, output: object) -> object:
        states = hidden_of(output).clone()
        if at.ndim == 2:
            states += change[:, None] * at[:, :, None]
        else:
            states[torch.arange(len(at)), at] += change
        return (states, *output[1:]) if isinstance(output, tuple) else states

    return hook


@EVERY
@pytest.mark.parametrize("site", ["mlp_out", "block"])
@torch.no_grad()
def test_the_suffix_from_the_lookup_token_on_is_the_whole_pass(name: str, site: str) -> None:
    model, a = tiny(name), tiny(name).anatomy
    rows = encode_lookups(model, [EXAMPLES[40:] + p for p in PROMPTS], [r.subject for r in SIX_REQUESTS], ANSWERS)
    ids, mask = pad_right([row.ids for row in rows], model.pad_id)
    each, lookup = torch.arange(len(rows)), torch.tensor([row.lookup for row in rows])
    path, block = getattr(a, site).format(layer=LAYER), a.block.format(layer=LAYER)
    above = [a.block.format(layer=i) for i in range(LAYER + 1, a.num_layers(model.hf))]
    seen = trace(model, ids, mask, outputs=(path, block), calls=above, use_cache=True)
    written = seen.outputs[path][each, lookup] if site == "mlp_out" else None
    suffix = suffix_of(model, seen, LAYER, lookup, mask.sum(1), written)
    change = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(2))
    kept = torch.tensor([4, 0, 2])
    for chosen, part in ((each, suffix), (kept, suffix.select(kept))):
        undo = model.hook(path, adding(change[chosen], lookup[chosen]))
        try:
            whole = trace(model, ids[chosen], mask[chosen], outputs=above[-1:]).outputs[above[-1]]
        finally:
            undo()
        found = part.run(change[chosen])
        for number, row in enumerate(chosen.tolist()):
            start, end = rows[row].lookup, len(rows[row].ids)
            assert end > 12, "shorter than the windows"
            agree(found[number, : end - start], whole[number, start:end])


@pytest.mark.parametrize("name", ["gptj", "gemma2", "olmo2"])
@pytest.mark.parametrize("site", ["mlp_out", "block"])
@torch.no_grad()
def test_the_suffix_changes_every_naming_as_the_whole_pass_does(name: str, site: str) -> None:
    model, a = tiny(name), tiny(name).anatomy
    prompts = ["Who was Ada Lovelace? Ada Lovelace was born in", "Ada Lovelace was born in"]
    rows = encode_namings(model, prompts, ["Ada Lovelace"] * 2, [" Paris"] * 2)
    assert [len(row.again) for row in rows] == [1, 0] and rows[0].lookup < rows[0].again[0]
    ids, mask = pad_right([row.ids for row in rows], model.pad_id)
    named = torch.zeros(ids.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        named[number, [row.lookup, *row.again]] = True
    path, block = getattr(a, site).format(layer=LAYER), a.block.format(layer=LAYER)
    above = [a.block.format(layer=i) for i in range(LAYER + 1, a.num_layers(model.hf))]
    seen = trace(model, ids, mask, outputs=(path, block), calls=above, use_cache=True)
    lookup, ends = torch.tensor([row.lookup for row in rows]), mask.sum(1)
    suffix = suffix_of(model, seen, LAYER, lookup, ends, seen.outputs[path] if site == "mlp_out" else None, named)
    change = torch.randn(2, 32, generator=torch.Generator().manual_seed(2))
    for kept in (torch.arange(2), torch.tensor([0])):
        undo = model.hook(path, adding(change[kept], named[kept]))
        try:
            whole = trace(model, ids[kept], mask[kept], outputs=above[-1:]).outputs[above[-1]]
        finally:
            undo()
        found = suffix.select(kept).run(change[kept])
        for number, row in enumerate(kept.tolist()):
            start, end = rows[row].lookup, len(rows[row].ids)
            agree(found[number, : end - start], whole[number, start:end])


# ------------------------------------------------------------ editors


@cache
def prepared_for(name: str, editor: str) -> tuple[Editor, Prepared]:
    made = tiny_editor(editor)
    return made, made.prepare(tiny(name), CORPUS)


@pytest.mark.parametrize("name", ["gptj", "olmo2", "gemma2"])
def test_a_mass_edit_writes_its_solved_change_where_the_norm_lets_it(name: str) -> None:
    """At the block's output over all layers; behind a norm at the last one's feed-forward, which alone is written."""
    model, asked = tiny(name), list(SIX_REQUESTS[5:])
    made, prepared = prepared_for(name, "ledger_solve")
    layers = made.config.layers
    plain = model.anatomy.mlp_post_norm is None
    path = model.anatomy.block if plain else model.anatomy.mlp_out
    before = lookup_states(model, asked, BARE, path, layers[-1]).outputs[0, 0]
    patch = made.edit(model, batch_of(asked), prepared)
    assert isinstance(patch, TotalPatch)
    model.push(patch)
    change = lookup_states(model, asked, BARE, path, layers[-1]).outputs[0, 0] - before
    model.rollback(0)
    solved = patch.deltas[asked[0].subject]
    assert torch.equal(solved, solve_subject(model, asked, prepared.meta["wordings"], layers[-1], path, made.config)[0])
    # Its length is right at the key averaged over contexts; OLMo 2, which norms no key, has longer ones at bare prompts.
    assert float(F.cosine_similarity(change, solved, dim=0)) > 0.98
    assert 0.7 < float(change.norm() / solved.norm()) < 1.5
    assert set(patch.updates) == {model.anatomy.mlp_out.format(layer=i) + ".weight" for i in (layers if plain else layers[-1:])}


@pytest.mark.parametrize("name", ["gptj", "gpt_neox"])
@torch.no_grad()
def test_two_changes_of_a_parallel_block_add_up_as_in_the_whole_pass(name: str) -> None:
    model, a, editor = tiny(name), tiny(name).anatomy, tiny_editor("pmet")
    encoded = encode_edits(model, SIX_REQUESTS, BARE, editor.config)
    objective, _ = two_latent_objective(model, encoded, LAYER, editor.config)
    changes = torch.randn(len(SIX_REQUESTS), 64, generator=torch.Generator().manual_seed(3))
    fast, row = objective.suffix.run(changes[objective.edit]), encoded[3].rows[0]
    at, number = torch.tensor([row.lookup]), int((objective.edit == 3).nonzero()[0])
    undos = [
        model.hook(path.format(layer=LAYER), adding(part, at))
        for path, part in zip((a.attention_out, a.mlp_out), changes[3].chunk(2), strict=True)
    ]
    last = a.block.format(layer=3)
    ids = torch.tensor([row.ids])
    whole = trace(model, ids, torch.ones_like(ids), outputs=(last,)).outputs[last][0, row.lookup :]
    for undo in undos:
        undo()
    agree(fast[number, : len(whole)], whole)


def test_a_value_of_grace_at_the_feed_forward_passes_the_norm_behind_it() -> None:
    model = tiny("gemma2")
    editor = load_editor("grace", tiny_model("llama"), {"site": "mlp"})
    (asked,), state = SIX_REQUESTS[:1], model.state_digest()
    prepared = editor.prepare(model, CORPUS)
    question, before = [Question(asked.prompt, asked.target_new)], model.state_digest()
    low = model.score(question)[0].log_prob
    model.push(editor.edit(model, batch_of([asked]), prepared))
    high = model.score(question)[0].log_prob
    model.rollback(0)
    assert high > low + 1 and model.state_digest() == state == before


# ------------------------------------------------------------ export


@EVERY
@torch.no_grad()
def test_an_edited_model_is_exported_to_transformers_own(name: str, tmp_path: Path) -> None:
    model, ids = tiny(name), rows_of(tiny(name))[0][:1]
    path = model.anatomy.mlp_out.format(layer=LAYER) + ".weight"
    model.push(WeightPatch({path: LowRank(torch.full((32, 1), 0.1), torch.ones(96, 1))}))
    try:
        model.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
        assert type(loaded) is type(model.hf)
        agree(loaded(input_ids=ids).logits, model.hf(input_ids=ids).logits)
    finally:
        model.rollback(0)


@pytest.mark.parametrize("name", ["gptj", "gpt_neox", "opt", "smollm3"])
@torch.no_grad()
def test_neurons_become_columns_where_the_feed_forward_has_biases(name: str) -> None:
    model, ids = tiny(name), rows_of(tiny(name))[0][:1]
    before = model.hf(input_ids=ids).logits
    keys, biases, values = (torch.randn(*size, generator=torch.Generator().manual_seed(4)) for size in ((2, 32), (2,), (2, 32)))
    model.push(NeuronPatch(model.anatomy.mlp.format(layer=LAYER), activation_of(model), 0, keys, biases, values))
    try:
        wanted = model.hf(input_ids=ids).logits
        agree(exported(model, OF_BEFORE).hf(input_ids=ids).logits, wanted)
        assert not torch.allclose(wanted, before, atol=1e-2)
    finally:
        model.rollback(0)


# ------------------------------------------------------------ refusals


def test_neurons_of_a_feed_forward_without_biases_are_not_exported() -> None:
    for name, why in (("falcon", "without biases"), ("olmo2", "without a norm")):
        model, none = tiny(name), torch.zeros(1, 32)
        model.push(NeuronPatch(model.anatomy.mlp.format(layer=LAYER), activation_of(model), 0, none, torch.zeros(1), none))
        try:
            with pytest.raises(UnsupportedModel, match=why):
                exported(model)
        finally:
            model.rollback(0)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_mixture_of_experts_or_a_tower_is_refused_by_name_with_what_is_known(kind: str) -> None:
    model = plain_model("mistral")
    vars(model.config)["model_type"] = kind
    with pytest.raises(UnsupportedModel, match=f"'{kind}' is not edited: .*gpt_neox"):
        anatomy_of(model)


@pytest.mark.parametrize(
    ("name", "entries", "why"),
    [("opt", {"do_layer_norm_before": False}, "opt-350m"), ("falcon", {"alibi": True}, "alibi")],
)
def test_a_configuration_that_no_editor_fits_is_refused(name: str, entries: dict[str, bool], why: str) -> None:
    with pytest.raises(UnsupportedModel, match=why):
        anatomy_of(plain_model(name, **entries))
