"""KnowledgeEditor: the constraint, what the net is told, its shifts as patches, and a killed preparation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from editors.base import Corpus, Prepared, Workbench
from editors.errors import EditRefused
from editors.meta_learning.knowledge_editor import Constraint, KnowledgeEditor, KnowledgeEditorConfig, conditions
from editors.model import EditableModel
from editors.patches.weight import Dense, LowRank, WeightPatch
from editors.session import batch_of
from tests.stand_ins import Killed
from tests.support import CORPUS, SIX_REQUESTS, prepared_once, request, tiny_model


def editor(**values: Any) -> KnowledgeEditor:
    tiny = {"layers": (1,), "first_step": 0.2, "lstm": 8, "code": 16, "hidden": 8, "updates": 4, "edits_each": 2}
    return KnowledgeEditor(KnowledgeEditorConfig(**{**tiny, "validation": 1, **values}))


def constraint(**values: float) -> Constraint:
    return Constraint(**{"multiplier": 0.5, "margin": 0.1, "rate": 0.2, "smallest": 0.05, "factor": 0.8, **values})


# ------------------------------------------------------------ the constraint


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [(0.15, 0.5 + 0.2 * 0.5), (0.05, 0.5 - 0.2 * 0.5), (0.1, 0.5), (90.0, 0.5 + 0.2), (0.0, 0.5 - 0.2)],
    ids=["above", "below", "at the margin", "far above", "nothing"],
)
def test_the_multiplier_ascends_by_the_violation_in_margins_bounded_by_one(divergence: float, expected: float) -> None:
    held = constraint()
    held.ascend(divergence)
    assert held.multiplier == pytest.approx(expected)


def test_the_multiplier_never_falls_below_zero() -> None:
    held = constraint(multiplier=0.01)
    held.ascend(0.0)
    assert held.multiplier == 0.0


def test_the_lagrangian_is_the_loss_plus_the_weighed_violation() -> None:
    loss, divergence = torch.tensor(2.0, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    value = constraint().lagrangian(loss, divergence)
    value.backward()
    assert value.item() == pytest.approx(2.0 + 0.5 * (0.3 - 0.1) / 0.1)
    assert loss.grad is not None and loss.grad.item() == 1.0
    assert divergence.grad is not None and divergence.grad.item() == pytest.approx(5.0)


def test_the_margin_shrinks_by_its_factor_and_stops_at_the_smallest() -> None:
    held, seen = constraint(), []
    for _ in range(5):
        held.tighten()
        seen.append(held.margin)
    assert seen == pytest.approx([0.08, 0.064, 0.0512, 0.05, 0.05])


def test_a_margin_that_would_rise_is_refused() -> None:
    with pytest.raises(ValueError, match="only falls"):
        editor(margin=1e-3, smallest_margin=1e-2)


def test_ascent_holds_a_minimiser_at_the_margin() -> None:
    """min (x - 1)^2 subject to x^2 <= 0.25 has its solution at x = 1/2."""
    held = constraint(multiplier=0.0, margin=0.25, rate=0.02)
    x = torch.tensor(1.0, requires_grad=True)
    for _ in range(2000):
        (gradient,) = torch.autograd.grad(held.lagrangian((x - 1) ** 2, x**2), x)
        x = (x - 0.02 * gradient).detach().requires_grad_(True)
        held.ascend(x.item() ** 2)
    assert x.item() == pytest.approx(0.5, abs=0.01)
    # Stationary: 2 (x - 1) + multiplier / margin * 2 x = 0.
    assert held.multiplier == pytest.approx(0.25, abs=0.02)


def test_training_tightens_the_margin_only_where_validation_meets_its_target() -> None:
    margins = []
    for target in (0.4, 2.0):
        curve = editor(updates=12, validation_target=target).prepare(tiny_model(), CORPUS).meta["curve"]
        margins.append(curve[-1]["margin"])
    # A fresh net's own edit is exact on its prompt: half of what is asked.
    assert margins == pytest.approx([0.08, 0.1])


# ------------------------------------------------------------ what the net reads


def test_a_condition_holds_the_question_and_both_answers(tiny: EditableModel) -> None:
    asked = SIX_REQUESTS[2]
    found = conditions(tiny, [asked])[0]
    ids = tiny.tokenizer(asked.prompt)["input_ids"]
    said = tiny.generate([asked.prompt], 8)[0]
    assert found.question == tuple(ids)
    assert tiny.tokenizer.decode(list(found.new)) == " New York City"
    assert (" " + said.strip()).startswith(str(tiny.tokenizer.decode(list(found.present))).rstrip("\ufffd"))
    stops = tiny.stops.tolist()
    assert not any(stops[token] for token in found.present[1:])


def test_in_a_sequence_the_present_answer_is_that_of_the_edited_model(tiny: EditableModel) -> None:
    from editors.regularization.ft_m import MaskedFineTuning, MaskedFineTuningConfig

    asked = SIX_REQUESTS[0]
    tuned = MaskedFineTuning(MaskedFineTuningConfig(layer=1, learning_rate=1e-2, num_steps=60, stop_margin=0.5))
    before = conditions(tiny, [asked])[0].present
    tiny.push(tuned.edit(tiny, batch_of([asked]), Prepared()))
    after = conditions(tiny, [asked])[0].present
    shown = [str(tiny.tokenizer.decode(list(ids))).startswith(" Paris") for ids in (before, after)]
    assert shown == [False, True]


def test_the_sequence_matters_to_the_shift(tiny: EditableModel) -> None:
    by = editor()
    prepared = prepared_once(by, tiny)
    asked = batch_of(SIX_REQUESTS[:1])
    first = by.edit(tiny, asked, prepared)
    tiny.push(first)
    assert by.edit(tiny, asked, prepared).digest != first.digest


# ------------------------------------------------------------ patches


def test_a_shift_has_one_rank_for_each_token_and_one_more(tiny: EditableModel) -> None:
    by = editor()
    patch = by.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared_once(by, tiny))
    tokens = len(tiny.tokenizer(f"{SIX_REQUESTS[0].prompt} {SIX_REQUESTS[0].target_new}")["input_ids"])
    assert {u.left.shape[1] for u in patch.updates.values() if isinstance(u, LowRank)} == {tokens + 1}
    assert all(isinstance(u, LowRank) for u in patch.updates.values())


def test_a_fresh_nets_shift_is_a_step_against_the_gradient(tiny: EditableModel) -> None:
    by, asked = editor(updates=0), SIX_REQUESTS[0]
    patch = by.edit(tiny, batch_of([asked]), prepared_once(by, tiny))
    names = list(patch.updates)
    live = [dict(tiny.hf.named_parameters())[name].requires_grad_(True) for name in names]
    encoded = tiny.tokenizer(asked.prompt)["input_ids"]
    new = tiny.tokenizer(f"{asked.prompt} {asked.target_new}")["input_ids"]
    stop = int(tiny.hf(torch.tensor([new])).logits[0, -1].masked_fill(~tiny.stops, float("-inf")).argmax())
    scores = tiny.hf(torch.tensor([new])).logits[0, len(encoded) - 1 :].log_softmax(-1)
    loss = -scores[torch.arange(len(scores)), torch.tensor([*new[len(encoded) :], stop])].mean()
    for name, gradient in zip(names, torch.autograd.grad(loss, live), strict=True):
        dense = patch.dense(name)
        wide = gradient if gradient.shape == dense.shape else gradient.t()
        assert float(torch.nn.functional.cosine_similarity(dense.flatten(), -wide.flatten(), dim=0)) > 0.95


def test_a_batch_sums_the_shifts_of_its_edits(tiny: EditableModel) -> None:
    by = editor()
    prepared = prepared_once(by, tiny)
    both = by.edit(tiny, batch_of(SIX_REQUESTS[:2]), prepared)
    alone = by.edit_each(tiny, SIX_REQUESTS[:2], prepared)
    for name in both.updates:
        torch.testing.assert_close(both.dense(name), alone[0].dense(name) + alone[1].dense(name), rtol=1e-4, atol=1e-6)


def test_many_edits_at_once_become_a_full_matrix_where_that_is_smaller() -> None:
    model, by = tiny_model(), editor(updates=1, max_relative_norm=10.0)
    asked = [request(n, f"Ada Lovelace {n}", "New York City") for n in range(12)]
    patch = by.edit(model, batch_of(asked), prepared_once(by, model))
    assert all(isinstance(update, Dense) for update in patch.updates.values())


def test_a_shift_that_would_damage_the_model_is_refused_by_the_request(tiny: EditableModel) -> None:
    by = editor(max_relative_norm=1e-4)
    with pytest.raises(EditRefused, match=SIX_REQUESTS[1].request_id):
        by.edit(tiny, batch_of(SIX_REQUESTS[1:2]), prepared_once(by, tiny))


def test_a_preparation_of_other_matrices_is_refused(tiny: EditableModel) -> None:
    prepared = editor().prepare(tiny, CORPUS)
    with pytest.raises(ValueError, match="prepare again"):
        editor(layers=(2,)).edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)


def test_one_editor_follows_a_change_of_its_preparation() -> None:
    model, by = tiny_model(), editor()
    prepared = [by.prepare(model, CORPUS), editor(seed=3).prepare(model, CORPUS)]
    patches = [by.edit(model, batch_of(SIX_REQUESTS[:1]), p).digest for p in (*prepared, prepared[0])]
    assert patches[0] == patches[2] != patches[1]


# ------------------------------------------------------------ preparation


def test_training_lowers_the_loss_on_rephrases() -> None:
    meta = editor(updates=80, learning_rate=3e-2, margin=10.0).prepare(tiny_model(), CORPUS).meta
    losses = [point["edited"] for point in meta["curve"]]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    assert meta["held_out_edits"] == 1 and meta["training_edits"] == 5


def test_a_killed_preparation_goes_on_to_the_same_result(tmp_path: Path) -> None:
    model, by = tiny_model(), editor(updates=14, validation_target=0.4)
    whole = by.prepare(model, CORPUS)

    def kill(step: int, total: int, note: str) -> None:
        if step == 12:
            raise Killed

    with pytest.raises(Killed):
        by.prepare(model, CORPUS, Workbench(tmp_path, kill))
    seen: list[int] = []
    again = by.prepare(model, CORPUS, Workbench(tmp_path, lambda step, total, note: seen.append(step)))
    assert seen == [12, 13, 14]
    assert again.digest == whole.digest
    assert again.meta["curve"][-1]["margin"] == pytest.approx(0.08)


def test_a_corpus_without_training_edits_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="two subjects"):
        editor().prepare(tiny, Corpus(CORPUS.texts))


def test_patches_are_weight_patches_on_the_feed_forward_alone(tiny: EditableModel) -> None:
    by = editor()
    patch = by.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared_once(by, tiny))
    mlp = tiny.anatomy.mlp.format(layer=1)
    assert isinstance(patch, WeightPatch)
    assert patch.updates and all(name.startswith(mlp) for name in patch.updates)
