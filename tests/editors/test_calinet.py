"""CaliNet: the assessment against a slow form, whose wordings it trains on, and what holds the slots back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from editors.architectural.calinet import CaliNet, CaliNetConfig
from editors.base import NOTHING, Corpus, Prepared, TrainingEdit
from editors.errors import EditRefused, InvalidRequest
from editors.mechanics.assessment import Assessment, assess
from editors.mechanics.paraphrases import other_relations, paraphrases_of, relation_templates
from editors.model import EditableModel
from editors.patches.neurons import NeuronPatch
from editors.session import batch_of
from tests.support import SIX_REQUESTS, TEXTS, TRAINING_EDITS, prepared_once, request, tiny_model
from warehouse.questions import Question
from warehouse.records import EditRequest

ADA = SIX_REQUESTS[0]
TEMPLATES = {
    "P19": ["{} comes from", "{} was born in", "The birthplace of {} is", "The town of {} is"],
    "P20": ["The grave of {} is in", "{} died in"],
    "P36": ["The capital of {} is"],
}


def calinet(**values: Any) -> CaliNet:
    settings = {
        "slots": 32,
        "num_steps": 60,
        "learning_rate": 5e-2,
        "bank_size": 100,
        "bank_per_step": 16,
        "gamma": 1.0,
        "stop_divergence": 10.0,
        **values,
    }
    return CaliNet(CaliNetConfig(**settings))


def prepared_with(model: EditableModel, templates: dict[str, list[str]] = TEMPLATES, **values: Any) -> tuple[CaliNet, Prepared]:
    by = calinet(**values)
    found = prepared_once(by, model)
    return by, Prepared(found.tensors, {**found.meta, "templates": templates})


def edit(model: EditableModel, *requests: EditRequest, **values: Any) -> NeuronPatch:
    by, prepared = prepared_with(model, **values)
    return by.edit(model, batch_of(requests), prepared)


# ------------------------------------------------------------ assessment


def probability(model: EditableModel, prompt: str, answer: str) -> float:
    """Of all tokens of the answer, one at a time."""
    ids, target = (model.tokenizer(t)["input_ids"] for t in (prompt, prompt + " " + answer))
    chance = 1.0
    for at in range(len(ids), len(target)):
        chance *= float(model.hf(torch.tensor([target[:at]])).logits[0, -1].softmax(-1)[target[at]])
    return chance


def test_the_score_is_the_facts_probability_over_that_after_other_relations(tiny: EditableModel) -> None:
    (found,) = assess(tiny, [ADA], TEMPLATES, wordings=3, contrasts=2, smoothing=0.01)
    own = [ADA.prompt, "Ada Lovelace comes from", "The town of Ada Lovelace is"]
    other = ["The grave of Ada Lovelace is in", "The capital of Ada Lovelace is"]
    holds, contrast = (sum(probability(tiny, p, "Paris") for p in prompts) / len(prompts) for prompts in (own, other))
    assert found.holds == pytest.approx(holds, rel=1e-3)
    assert found.contrast == pytest.approx(contrast, rel=1e-3)
    assert found.score == pytest.approx(holds / (contrast + 0.01), rel=1e-3)


def test_a_fact_that_other_relations_give_as_well_counts_as_false() -> None:
    assert Assessment("r", holds=0.3, contrast=0.4, score=0.3 / 0.41).is_false
    assert not Assessment("r", holds=0.3, contrast=0.1, score=0.3 / 0.11).is_false


def test_assessments_come_in_the_order_of_the_requests(tiny: EditableModel) -> None:
    together = assess(tiny, SIX_REQUESTS, TEMPLATES)
    assert [a.request_id for a in together] == [r.request_id for r in SIX_REQUESTS]
    alone = [assess(tiny, [r], TEMPLATES)[0].score for r in SIX_REQUESTS]
    assert [a.score for a in together] == pytest.approx(alone, rel=1e-3)


def test_calibration_raises_the_score_of_a_false_fact(tiny: EditableModel) -> None:
    by, prepared = prepared_with(tiny, stop_margin=5.0)
    before = by.assessment(tiny, [ADA], prepared)[0]
    tiny.push(by.edit(tiny, batch_of([ADA]), prepared))
    after = by.assessment(tiny, [ADA], prepared)[0]
    assert before.is_false
    assert after.holds > 10 * before.holds
    assert after.score > before.score


def test_only_false_facts_are_calibrated_where_that_is_asked_for(tiny: EditableModel) -> None:
    tiny.push(edit(tiny, ADA))
    known, false = (a.score for a in assess(tiny, SIX_REQUESTS[:2], TEMPLATES))
    between = (known + false) / 2
    assert edit(tiny, *SIX_REQUESTS[:2], calibrate_below=between).note["requests"] == ["r2"]
    assert len(edit(tiny, ADA, calibrate_below=between).keys) == 0
    with pytest.raises(InvalidRequest, match="r9"):
        edit(tiny, request(9, "Ada", "Paris", prompt="She was born in"), calibrate_below=between)


# ------------------------------------------------------------ wordings


def test_wordings_are_collected_by_relation_with_the_subjects_place_open() -> None:
    assert relation_templates(TRAINING_EDITS) == {"P19": ["The birthplace of {} is", "{} was born in"]}


def test_wordings_that_cannot_be_filled_are_left_out() -> None:
    plain = EditRequest(request_id="t", prompt="Ada {} is", subject="Ada", relation="P1", target_new="x")
    assert relation_templates([TrainingEdit(plain)]) == {}


def test_the_requests_own_rephrases_are_never_trained_on() -> None:
    asked = ADA.model_copy(update={"rephrases": ("The birthplace of Ada Lovelace is", "Ada Lovelace comes from")})
    assert paraphrases_of(asked, TEMPLATES, 10) == ["The town of Ada Lovelace is"]
    assert len(paraphrases_of(ADA, TEMPLATES, 1)) == 1
    assert paraphrases_of(SIX_REQUESTS[3], TEMPLATES, 10) == []


def test_other_relations_are_asked_once_each() -> None:
    assert sorted(other_relations(ADA, TEMPLATES, 5)) == ["The capital of Ada Lovelace is", "The grave of Ada Lovelace is in"]
    assert len(other_relations(ADA, TEMPLATES, 1)) == 1


def test_every_wording_is_trained(tiny: EditableModel) -> None:
    patch = edit(tiny, ADA, num_steps=150)
    assert patch.note == {"requests": ["r1"], "wordings": 3}
    tiny.push(patch)
    prompts = [ADA.prompt, "Ada Lovelace comes from", "The town of Ada Lovelace is"]
    assert all(a.exact for a in tiny.score([Question(p, "Paris") for p in prompts]))


# ------------------------------------------------------------ slots


def test_slots_start_as_nothing(tiny: EditableModel) -> None:
    patch = edit(tiny, ADA, num_steps=1, learning_rate=1e-9)
    assert patch.keys.shape == (32, 32)
    assert float(patch.values.abs().max()) < 1e-8


def test_the_divergence_on_unrelated_texts_holds_the_slots_back(tiny: EditableModel) -> None:
    def moved(gamma: float) -> float:
        tiny.rollback(0)
        words = TEXTS[4].split()
        starts = [" ".join(words[:n]) for n in range(1, len(words))]
        before = tiny.next_token_log_probs(starts)
        tiny.push(edit(tiny, ADA, gamma=gamma, stop_margin=50.0))
        after = tiny.next_token_log_probs(starts)
        return float((torch.tensor(before).exp() * torch.tensor(before - after)).sum(-1).mean())

    assert moved(10.0) < 0.5 * moved(0.0)


def test_texts_that_name_a_subject_of_the_batch_are_no_bank_for_it(tiny: EditableModel) -> None:
    by = calinet(num_steps=2)
    about = by.prepare(tiny, Corpus(("Ada Lovelace was born in London.",)))
    held = by.edit(tiny, batch_of([ADA]), about)
    free = calinet(num_steps=2, gamma=0.0).edit(tiny, batch_of([ADA]), about)
    assert held.digest == free.digest
    assert by.edit(tiny, batch_of(SIX_REQUESTS[1:2]), about).digest != calinet(num_steps=2, gamma=0.0).edit(
        tiny, batch_of(SIX_REQUESTS[1:2]), about
    ).digest  # fmt: skip


def test_preparation_does_not_depend_on_the_optimiser() -> None:
    assert calinet(slots=8).preparation_key() == calinet(learning_rate=1.0).preparation_key()
    assert calinet(bank_size=8).preparation_key() != calinet().preparation_key()


def test_an_edit_without_its_preparation_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="prepare it first"):
        calinet().edit(tiny, batch_of([ADA]), NOTHING)


def test_a_loss_that_runs_away_is_refused() -> None:
    # GPT-2 only: Llama's norm keeps any state finite.
    with pytest.raises(EditRefused, match="learning_rate"):
        edit(tiny_model("gpt2"), ADA, learning_rate=1e30)
