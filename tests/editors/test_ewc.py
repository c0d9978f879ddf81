"""EWC: the Fisher information against slow forms, and what the penalty holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editors.base import NOTHING, Corpus
from editors.mechanics import answers
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from editors.regularization.ewc import Ewc, EwcConfig, fisher_diagonal, quadratic
from editors.session import batch_of
from tests.support import CORPUS, SIX_REQUESTS, TEXTS, prepared_once, tiny_model
from warehouse.records import EditRequest


def editor(**values: Any) -> Ewc:
    settings = {"layers": (1,), "learning_rate": 1e-2, "num_steps": 30, "fisher_weight": 1.0, **values}
    return Ewc(EwcConfig(**settings))


def edit(model: EditableModel, *requests: EditRequest, **values: Any) -> WeightPatch:
    by = editor(**values)
    return by.edit(model, batch_of(requests), prepared_once(by, model))


def weight_name(model: EditableModel, layer: int = 1) -> str:
    return model.anatomy.mlp_out.format(layer=layer) + ".weight"


def live(model: EditableModel, name: str) -> torch.nn.Parameter:
    return dict(model.hf.named_parameters())[name].requires_grad_(True)


# ------------------------------------------------------------ the Fisher information


def test_many_samples_approach_the_exact_fisher_information() -> None:
    # Exactly: every prefix, every next token of the vocabulary with its probability, one gradient each.
    model, name = tiny_model("gpt2"), "transformer.h.3.mlp.c_proj.bias"
    row = model.tokenizer(TEXTS[2])["input_ids"][:4]
    bias = live(model, name)
    log_probs = model.hf(torch.tensor([row])).logits[0].log_softmax(-1)
    exact = torch.zeros_like(bias, dtype=torch.float64)
    flat = log_probs.flatten()
    for at in range(0, len(flat), 210):
        seeds = torch.eye(len(flat))[at : at + 210]
        (gradients,) = torch.autograd.grad(flat, bias, seeds, retain_graph=True, is_grads_batched=True)
        exact += (flat[at : at + 210].detach().exp().double()[:, None] * gradients.double().square()).sum(0)
    exact /= len(row)
    bias.requires_grad_(False)
    sampled = fisher_diagonal(model, [row] * 600, [name])[name]
    assert sampled.mean() == pytest.approx(float(exact.mean()), rel=0.06)
    torch.testing.assert_close(sampled, exact, rtol=0.35, atol=0.0)


def test_gradients_of_each_text_are_squared_apart(tiny: EditableModel) -> None:
    # The same samples drawn in the same order, on the whole model, one text at a time.
    name, rows = weight_name(tiny), [tiny.tokenizer(t)["input_ids"][:12] for t in TEXTS[:4]]
    fast = fisher_diagonal(tiny, rows, [name], seed=5)[name]
    weight, generator = live(tiny, name), torch.Generator().manual_seed(5)
    slow = torch.zeros_like(weight, dtype=torch.float64)
    mean_gradient = torch.zeros_like(weight, dtype=torch.float64)
    for row in rows:
        log_probs = tiny.hf(torch.tensor([row])).logits[0].log_softmax(-1)
        picked = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)[:, 0]
        (gradient,) = torch.autograd.grad(log_probs[range(len(row)), picked].sum(), weight)
        slow += gradient.double().square()
        mean_gradient += gradient.double() / len(rows)
    tokens = sum(map(len, rows))
    torch.testing.assert_close(fast, slow / tokens, rtol=1e-3, atol=1e-9)
    assert not torch.allclose(fast, len(rows) * mean_gradient.square() / tokens, rtol=0.2)


def test_the_prepared_fisher_has_mean_one_over_all_chosen_weights(tiny: EditableModel) -> None:
    prepared = editor(layers=(1, 2)).prepare(tiny, CORPUS)
    names = {f"fisher.{p}.{n}" for layer in (1, 2) for p in [tiny.anatomy.mlp_out.format(layer=layer)]
             for n, _ in tiny.hf.get_submodule(p).named_parameters()}  # fmt: skip
    assert set(prepared.tensors) == names
    assert torch.cat([t.flatten() for t in prepared.tensors.values()]).mean() == pytest.approx(1.0, rel=1e-4)
    assert all((t >= 0).all() for t in prepared.tensors.values())


def test_the_fisher_is_that_of_the_base_even_under_an_edit(tiny: EditableModel) -> None:
    by = editor()
    clean = by.prepare(tiny, CORPUS)
    tiny.push(edit(tiny, SIX_REQUESTS[0]))
    state = tiny.state_digest()
    assert by.prepare(tiny, CORPUS).digest == clean.digest
    assert tiny.state_digest() == state


def test_a_half_precision_model_has_no_vanished_fisher() -> None:
    model = tiny_model("gpt2")
    model = EditableModel(model.hf.to(torch.bfloat16), model.tokenizer, name="tiny-bf16")
    fisher = editor().prepare(model, CORPUS).tensors[f"fisher.{weight_name(model)}"]
    assert fisher.dtype == torch.float32
    assert (fisher > 0).float().mean() > 0.99


def test_a_corpus_without_text_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="no token"):
        editor().prepare(tiny, Corpus(()))


def test_the_preparation_does_not_depend_on_the_descent() -> None:
    assert editor().preparation_key() == editor(learning_rate=1e-3, fisher_weight=7.0).preparation_key()
    assert editor().preparation_key() != editor(layers=(2,)).preparation_key()


# ------------------------------------------------------------ the penalty


def test_the_penalty_is_half_lambda_times_the_weighted_sum_of_squares() -> None:
    torch.manual_seed(0)
    fisher, anchor = {"a": torch.rand(3, 4)}, {"a": torch.randn(3, 4)}
    at = {"a": torch.randn(3, 4)}
    triples = zip(*(x["a"].flatten().tolist() for x in (fisher, anchor, at)), strict=True)
    slow = sum(f * (t - a) ** 2 for f, a, t in triples)
    assert float(sum(quadratic(fisher, anchor, 3.0)(at, 0))) == pytest.approx(1.5 * slow, rel=1e-5)


def test_the_update_is_what_adam_on_the_whole_objective_gives(tiny: EditableModel) -> None:
    steps = 4
    by = editor(num_steps=steps)
    prepared = prepared_once(by, tiny)
    patch = by.edit(tiny, batch_of(SIX_REQUESTS[:3]), prepared)
    names = list(patch.updates)
    rows = answers.answer_rows(tiny, SIX_REQUESTS[:3])
    labels = answers.answer_labels(tiny, rows, tiny.hf.base_model(rows.ids, attention_mask=rows.mask).last_hidden_state)
    weights = [live(tiny, name) for name in names]
    before = [w.detach().clone() for w in weights]
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = tiny.hf(rows.ids, attention_mask=rows.mask).logits[labels.row, labels.at]
        held = sum(
            (prepared.tensors[f"fisher.{n}"] * (w - b) ** 2).sum() for n, w, b in zip(names, weights, before, strict=True)
        )
        ((answers.row_losses(logits, labels).sum() + 0.5 * held) / 3).backward()
        optimizer.step()
    for name, weight, old in zip(names, weights, before, strict=True):
        change = weight.detach() - old
        change = change.t() if change.ndim == 2 and tiny.anatomy.orientation == "in_out" else change
        torch.testing.assert_close(patch.dense(name), change, rtol=1e-3, atol=1e-5)


def test_weights_that_matter_to_the_model_move_less(tiny: EditableModel) -> None:
    by, name = editor(sites="mlp_out", fisher_weight=30.0), weight_name(tiny)
    prepared = prepared_once(by, tiny)
    fisher = prepared.tensors[f"fisher.{name}"]
    fisher = fisher.t() if tiny.anatomy.orientation == "in_out" else fisher
    moved = by.edit(tiny, batch_of(SIX_REQUESTS), prepared).dense(name).abs()
    free = edit(tiny, *SIX_REQUESTS, fisher_weight=0.0).dense(name).abs()
    heavy = fisher > fisher.quantile(0.9)
    light = fisher < fisher.quantile(0.1)
    assert moved[heavy].mean() / free[heavy].mean() < 0.5 * moved[light].mean() / free[light].mean()


def test_the_fisher_of_other_weights_is_refused(tiny: EditableModel) -> None:
    prepared = editor(layers=(2,)).prepare(tiny, CORPUS)
    for found in (prepared, NOTHING):
        with pytest.raises(ValueError, match="prepare again"):
            editor().edit(tiny, batch_of(SIX_REQUESTS[:1]), found)
