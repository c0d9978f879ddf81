"""FT and FT-M: which weights move, how far, when they stop, and on what loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editors.base import NOTHING
from editors.errors import EditRefused
from editors.mechanics import answers, descent
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from editors.presets import load_editor
from editors.regularization.ft import FineTuning, FineTuningConfig
from editors.regularization.ft_m import MaskedFineTuning, MaskedFineTuningConfig
from editors.session import batch_of
from tests.stand_ins import Ask
from tests.support import CORPUS, SIX_REQUESTS, request, tiny_model
from warehouse.records import EditRequest


def masked(**values: Any) -> MaskedFineTuning:
    return MaskedFineTuning(MaskedFineTuningConfig(**{"layer": 1, "learning_rate": 1e-2, "num_steps": 60, **values}))


def edit(editor: MaskedFineTuning | FineTuning, model: EditableModel, *requests: EditRequest) -> WeightPatch:
    return editor.edit(model, batch_of(requests), NOTHING)


def is_exact(model: EditableModel, *requests: EditRequest) -> list[bool]:
    return [a.exact for a in model.score([Ask(r.prompt, r.target_new) for r in requests])]


def test_ft_m_writes_one_output_projection(tiny: EditableModel) -> None:
    patch = edit(masked(), tiny, SIX_REQUESTS[0])
    assert list(patch.updates) == [tiny.anatomy.mlp_out.format(layer=1) + ".weight"]
    assert patch.dense(next(iter(patch.updates))).shape == (32, 96)


@pytest.mark.parametrize(("sites", "module"), [("mlp_out", "mlp_out"), ("mlp", "mlp"), ("all", "block")])
def test_ft_writes_every_parameter_of_its_sites_and_no_other(sites: Any, module: str, tiny: EditableModel) -> None:
    editor = FineTuning(FineTuningConfig(layers=(1, 3), sites=sites, learning_rate=1e-2))
    patch = edit(editor, tiny, SIX_REQUESTS[0])
    paths = [getattr(tiny.anatomy, module).format(layer=layer) for layer in (1, 3)]
    wanted = {n for n, _ in tiny.hf.named_parameters() if any(n.startswith(p + ".") for p in paths)}
    assert set(patch.updates) == wanted
    # The MLP's output can always be moved; some biases in front of a norm or softmax need not move.
    assert all(patch.dense(p.format(layer=3) + ".weight").any() for p in [tiny.anatomy.mlp_out])


def test_answers_of_several_tokens_become_exact_with_their_stop(tiny: EditableModel) -> None:
    tiny.push(edit(masked(stop_margin=0.5), tiny, *SIX_REQUESTS))
    assert is_exact(tiny, *SIX_REQUESTS) == [True] * 6


def test_the_clamp_bounds_every_entry(tiny: EditableModel) -> None:
    free, bound = (edit(masked(clamp=c), tiny, SIX_REQUESTS[1]) for c in (None, 5e-3))
    name = next(iter(free.updates))
    assert free.dense(name).abs().max() > 5e-3
    assert bound.dense(name).abs().max() == pytest.approx(5e-3, rel=1e-3)


def test_nothing_moves_when_the_loss_is_low_enough_already(tiny: EditableModel) -> None:
    patch = edit(masked(stop_loss=1e9), tiny, SIX_REQUESTS[0])
    assert not patch.dense(next(iter(patch.updates))).any()


def test_a_margin_stops_sooner_than_the_published_loss(tiny: EditableModel) -> None:
    published, sooner = edit(masked(), tiny, SIX_REQUESTS[0]), edit(masked(stop_margin=0.1), tiny, SIX_REQUESTS[0])
    name = next(iter(published.updates))
    assert sooner.dense(name).norm() < published.dense(name).norm()
    tiny.push(sooner)
    assert is_exact(tiny, SIX_REQUESTS[0]) == [True]


def test_two_batches_share_no_optimiser_state(tiny: EditableModel) -> None:
    editor = masked()
    first = edit(editor, tiny, SIX_REQUESTS[0])
    edit(editor, tiny, SIX_REQUESTS[2])
    assert edit(editor, tiny, SIX_REQUESTS[0]).digest == first.digest


def test_passes_in_pieces_give_the_update_of_one_pass(tiny: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = edit(masked(num_steps=3), tiny, *SIX_REQUESTS)
    monkeypatch.setattr(descent, "TOKENS_PER_PASS", 40)
    pieces = edit(masked(num_steps=3), tiny, *SIX_REQUESTS)
    name = next(iter(whole.updates))
    torch.testing.assert_close(pieces.dense(name), whole.dense(name), rtol=1e-3, atol=1e-5)


def test_the_update_is_what_adam_on_the_whole_model_gives(tiny: EditableModel) -> None:
    steps, name = 3, tiny.anatomy.mlp_out.format(layer=1) + ".weight"
    patch = edit(masked(num_steps=steps), tiny, *SIX_REQUESTS[:3])
    rows = answers.answer_rows(tiny, SIX_REQUESTS[:3])
    labels = answers.answer_labels(tiny, rows, tiny.hf.base_model(rows.ids, attention_mask=rows.mask).last_hidden_state)
    weight = dict(tiny.hf.named_parameters())[name]
    before = weight.detach().clone()
    weight.requires_grad_(True)
    optimizer = torch.optim.Adam([weight], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = tiny.hf(rows.ids, attention_mask=rows.mask).logits[labels.row, labels.at]
        answers.row_losses(logits, labels).mean().backward()
        optimizer.step()
    change = weight.detach() - before
    if tiny.anatomy.orientation == "in_out":
        change = change.t()
    torch.testing.assert_close(patch.dense(name), change, rtol=1e-3, atol=1e-5)


def test_half_precision_models_are_trained_in_full_precision() -> None:
    model = tiny_model("gpt2")
    model = EditableModel(model.hf.to(torch.bfloat16), model.tokenizer, name="tiny-bf16")
    state = model.state_digest()
    # One step of 1e-5 would vanish in bfloat16 weights of size 0.1.
    patch = edit(masked(learning_rate=1e-5, num_steps=1), model, SIX_REQUESTS[0])
    value = patch.dense(next(iter(patch.updates)))
    assert value.dtype == torch.float32
    assert value.abs().max() == pytest.approx(1e-5, rel=1e-2)
    assert model.state_digest() == state


def test_edits_build_on_the_memory_below_them() -> None:
    model = tiny_model("gpt2")
    grace = load_editor("grace", model)
    prepared = grace.prepare(model, CORPUS)
    model.push(grace.edit(model, batch_of(SIX_REQUESTS[:1]), prepared))
    changed = request(1, "Ada Lovelace", "Tokyo")
    model.push(edit(masked(layer=2, stop_margin=0.5), model, changed))
    assert is_exact(model, changed) == [True]


def test_a_loss_that_is_not_finite_is_refused_and_changes_nothing() -> None:
    # GPT-2 only: Llama's norm sends an infinite state to zero.
    tiny = tiny_model("gpt2")
    state = tiny.state_digest()
    with pytest.raises(EditRefused, match="lower learning_rate"):
        edit(masked(learning_rate=1e30), tiny, SIX_REQUESTS[0])
    assert tiny.state_digest() == state


# ------------------------------------------------------------ labels, losses, leads


def test_labels_are_the_target_and_a_stop_and_never_the_prompt(tiny: EditableModel) -> None:
    rows = answers.answer_rows(tiny, SIX_REQUESTS)
    final = tiny.hf.base_model(rows.ids, attention_mask=rows.mask).last_hidden_state
    labels = answers.answer_labels(tiny, rows, final)
    for i, target in enumerate(rows.targets):
        mine = labels.row == i
        start = int(rows.last_prompt[i])
        assert labels.at[mine].tolist() == list(range(start, start + len(target) + 1))
        assert labels.token[mine].tolist()[:-1] == list(target)
        assert tiny.stops[labels.token[mine][-1]]
        assert labels.is_stop[mine].tolist() == [False] * len(target) + [True]
        assert tiny.tokenizer.decode(target).strip() == SIX_REQUESTS[i].target_new


def test_a_long_answer_weighs_no_more_than_a_short_one() -> None:
    labels = answers.Labels(
        torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 0]), torch.zeros(4).bool(), 2
    )
    logits = torch.tensor([[0.0, 0.0], [5.0, 0.0], [5.0, 0.0], [5.0, 0.0]])
    short, long = answers.row_losses(logits, labels).tolist()
    assert short == pytest.approx(0.6931, abs=1e-4)
    assert long == pytest.approx(0.0067, abs=1e-4)


def test_the_lead_at_the_end_is_that_of_the_best_stop() -> None:
    labels = answers.Labels(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([False, True]), 1)
    stops = torch.tensor([False, False, True, True])
    logits = torch.tensor([[0.0, 3.0, 1.0, 0.0], [0.0, 1.0, 0.5, 2.5]])
    assert answers.row_leads(logits, labels, stops).tolist() == [1.5]


@pytest.mark.parametrize("kept", [[2, 0], [1]])
def test_selected_labels_are_renumbered(kept: list[int]) -> None:
    row = torch.tensor([0, 0, 1, 2, 2])
    labels = answers.Labels(row, torch.arange(5), torch.arange(5) + 10, torch.zeros(5).bool(), 3)
    chosen = labels.select(torch.tensor(kept))
    assert chosen.num_rows == len(kept)
    for token, new_row in zip(chosen.token.tolist(), chosen.row.tolist(), strict=True):
        assert kept[new_row] == int(row[token - 10])
