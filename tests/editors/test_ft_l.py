"""FT-L: the box, and the published loss beside the correct one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editors.base import NOTHING
from editors.mechanics.answers import answer_labels, answer_rows
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from editors.regularization.ft_l import (
    ConstrainedFineTuning,
    ConstrainedFineTuningConfig,
    all_at_last_prompt_token,
)
from editors.regularization.ft_m import MaskedFineTuning, MaskedFineTuningConfig
from editors.session import batch_of
from tests.stand_ins import Ask
from tests.support import SIX_REQUESTS, request
from warehouse.records import EditRequest

SETTINGS: dict[str, Any] = {"layer": 1, "learning_rate": 1e-2, "num_steps": 60}


def edit(model: EditableModel, *requests: EditRequest, **values: Any) -> WeightPatch:
    config = ConstrainedFineTuningConfig(**{**SETTINGS, "clamp": 0.2, **values})
    return ConstrainedFineTuning(config).edit(model, batch_of(requests), NOTHING)


def only(patch: WeightPatch) -> torch.Tensor:
    (name,) = patch.updates
    return patch.dense(name)


def test_every_entry_stays_within_the_clamp(tiny: EditableModel) -> None:
    change = only(edit(tiny, *SIX_REQUESTS, clamp=5e-3)).abs().max()
    assert change == pytest.approx(5e-3, rel=1e-3)


def test_a_clamp_given_as_an_integer_holds(tiny: EditableModel) -> None:
    assert only(edit(tiny, *SIX_REQUESTS, clamp=1, learning_rate=0.5)).abs().max() == pytest.approx(1, rel=1e-3)


def test_the_clamp_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="clamp"):
        ConstrainedFineTuningConfig(**SETTINGS)


def test_the_default_loss_is_that_of_ft_m(tiny: EditableModel) -> None:
    masked = MaskedFineTuning(MaskedFineTuningConfig(**SETTINGS, clamp=0.2))
    assert torch.equal(only(edit(tiny, *SIX_REQUESTS)), only(masked.edit(tiny, batch_of(SIX_REQUESTS), NOTHING)))


def test_published_labels_ask_the_last_prompt_token_for_every_target_token(tiny: EditableModel) -> None:
    rows = answer_rows(tiny, SIX_REQUESTS)
    final = tiny.hf.base_model(rows.ids, attention_mask=rows.mask).last_hidden_state
    labels = all_at_last_prompt_token(rows, answer_labels(tiny, rows, final))
    for i, target in enumerate(rows.targets):
        mine = labels.row == i
        assert labels.token[mine].tolist() == list(target)
        assert set(labels.at[mine].tolist()) == {int(rows.last_prompt[i])}
    assert not labels.is_stop.any()


def test_the_published_mode_is_adam_on_the_loss_of_the_authors_code(tiny: EditableModel) -> None:
    # kmeng01/rome baselines/ft/ft_main.py: the prompt alone goes in, one row of log-probabilities serves all targets.
    asked, steps, name = SIX_REQUESTS[2:3], 3, tiny.anatomy.mlp_out.format(layer=1) + ".weight"
    patch = edit(tiny, *asked, loss="last_prompt_token", num_steps=steps, clamp=5.0)
    (target,) = answer_rows(tiny, asked).targets
    assert len(target) > 1
    prompt = torch.tensor([tiny.tokenizer(asked[0].prompt)["input_ids"]])
    weight = dict(tiny.hf.named_parameters())[name]
    before = weight.detach().clone()
    weight.requires_grad_(True)
    optimizer = torch.optim.Adam([weight], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        log_probs = tiny.hf(prompt).logits[0, -1].log_softmax(-1)
        (-log_probs[list(target)].mean()).backward()
        optimizer.step()
    change = weight.detach() - before
    change = change.t() if tiny.anatomy.orientation == "in_out" else change
    torch.testing.assert_close(only(patch), change, rtol=1e-3, atol=1e-5)


def test_the_published_loss_writes_one_token_answers_and_fails_on_longer_ones(tiny: EditableModel) -> None:
    tokenizer = tiny.tokenizer
    (one,) = [t for t in (" Paris",) if len(tokenizer(t)["input_ids"]) == 1]
    short, long = request(1, "Ada Lovelace", one.strip()), request(2, "Alan Turing", "Łódź Zürich")
    for asked, first_is_top in ((short, True), (long, False)):
        tiny.push(edit(tiny, asked, loss="last_prompt_token", clamp=1.0))
        ids = tokenizer(asked.prompt + " " + asked.target_new)["input_ids"]
        start = len(tokenizer(asked.prompt)["input_ids"])
        top = tiny.hf(torch.tensor([ids])).logits[0, start - 1 : -1].argmax(-1).tolist()
        assert (top == ids[start:]) is first_is_top
        tiny.rollback(0)
    tiny.push(edit(tiny, long, clamp=1.0))
    assert tiny.score([Ask(long.prompt, long.target_new)])[0].exact
