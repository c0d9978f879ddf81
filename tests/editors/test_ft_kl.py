"""FT+KL: the divergence against the full one, the bank, its scope, and what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from editors.base import NOTHING, Corpus, Prepared
from editors.mechanics import locality_bank
from editors.mechanics.locality_bank import LocalityBank, coarse_kl, out_of_scope, split
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from editors.regularization.ft_kl import FineTuningKl, FineTuningKlConfig
from editors.session import batch_of
from tests.stand_ins import Ask
from tests.support import CORPUS, SIX_REQUESTS, prepared_once
from warehouse.records import EditRequest


def editor(**values: Any) -> FineTuningKl:
    settings = {"layers": (1,), "learning_rate": 1e-2, "num_steps": 30, "bank_size": 8, "texts_per_step": 2, **values}
    return FineTuningKl(FineTuningKlConfig(**settings))


def edit(model: EditableModel, *requests: EditRequest, **values: Any) -> WeightPatch:
    by = editor(**values)
    return by.edit(model, batch_of(requests), prepared_once(by, model))


def weight_name(model: EditableModel) -> str:
    return model.anatomy.mlp_out.format(layer=1) + ".weight"


def full_divergence(model: EditableModel, before: list[torch.Tensor], texts: list[str]) -> float:
    """Mean KL over all tokens of the texts, over the whole vocabulary, one text at a time."""
    rows = [
        (old.exp() * (old - model.hf(torch.tensor([model.tokenizer(t)["input_ids"]])).logits[0].log_softmax(-1))).sum(-1)
        for old, t in zip(before, texts, strict=True)
    ]
    return float(torch.cat(rows).mean())


def predictions(model: EditableModel, texts: list[str]) -> list[torch.Tensor]:
    return [model.hf(torch.tensor([model.tokenizer(t)["input_ids"]])).logits[0].log_softmax(-1) for t in texts]


# ------------------------------------------------------------ the divergence


@pytest.mark.parametrize("top_k", [3, 20])
def test_the_divergence_is_the_kl_of_the_top_tokens_and_one_class_for_the_rest(top_k: int) -> None:
    torch.manual_seed(0)
    base, other = torch.randn(5, 20), torch.randn(5, 20)
    top = base.topk(top_k).indices
    value = coarse_kl(*split(base, top), other, top)
    for row in range(5):
        p, q, kept = base[row].softmax(-1), other[row].softmax(-1), top[row].tolist()
        slow = sum(float(p[i] * (p[i] / q[i]).log()) for i in kept)
        rest = [i for i in range(20) if i not in kept]
        if rest:
            slow += float(p[rest].sum() * (p[rest].sum() / q[rest].sum()).log())
        assert float(value[row]) == pytest.approx(slow, rel=1e-4)


def test_with_the_whole_vocabulary_it_is_the_full_kl_and_has_a_gradient() -> None:
    torch.manual_seed(1)
    base, other = torch.randn(4, 9), torch.randn(4, 9, requires_grad=True)
    top = base.topk(9).indices
    value = coarse_kl(*split(base, top), other, top)
    full = torch.nn.functional.kl_div(other.log_softmax(-1), base.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(value, full)
    value.sum().backward()
    torch.testing.assert_close(other.grad, (other.softmax(-1) - base.softmax(-1)).detach(), rtol=1e-4, atol=1e-6)


def test_fewer_classes_never_say_more_than_the_full_kl() -> None:
    torch.manual_seed(2)
    base, other = 3 * torch.randn(64, 30), 3 * torch.randn(64, 30)
    values = [coarse_kl(*split(base, top), other, top) for top in (base.topk(k).indices for k in (1, 5, 15, 30))]
    for fewer, more in pairwise(values):
        assert (fewer <= more + 1e-5).all()


def test_the_penalty_is_the_full_kl_at_every_token_of_the_texts(tiny: EditableModel) -> None:
    by = editor(top_k=1000, texts_per_step=8, gamma=0.7)
    prepared, name = prepared_once(by, tiny), weight_name(tiny)
    texts = prepared.meta["texts"]
    before = predictions(tiny, texts)
    torch.manual_seed(0)
    changed = tiny.parameter(name) + 0.2 * torch.randn_like(tiny.parameter(name))
    bank = LocalityBank(tiny, prepared, 1, 0.7, 8, frozenset(range(len(texts))))
    value = float(sum(bank.penalty({name: changed}, 0)))
    tiny.overwrite(name, changed)
    assert value == pytest.approx(0.7 * full_divergence(tiny, before, texts), rel=1e-3)
    assert value > 0.01


def test_read_in_pieces_it_is_the_same_divergence(tiny: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, name = prepared_once(editor(top_k=16, texts_per_step=8), tiny), weight_name(tiny)
    texts, asked = len(prepared.meta["texts"]), []
    counted = frozenset(range(texts)) - {1}
    real, noise = coarse_kl, torch.randn(tiny.parameter(name).shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(locality_bank, "coarse_kl", lambda *parts: asked.append(len(parts[2])) or real(*parts))

    def read() -> tuple[int, float, torch.Tensor]:
        asked.clear()
        changed = (tiny.parameter(name) + 0.2 * noise).requires_grad_(True)
        parts, value = 0, 0.0
        for part in LocalityBank(tiny, prepared, 1, 0.7, 8, counted).penalty({name: changed}, 0):
            parts, value = parts + 1, value + float(part.detach())
            part.backward()
        assert changed.grad is not None
        return parts, value, changed.grad

    parts, value, gradient = read()
    tokens = sum(length for i, length in enumerate(prepared.meta["lengths"]) if i in counted)
    assert parts == 1 and asked == [tokens]
    monkeypatch.setattr(locality_bank, "LEAST_BYTES", 1)
    monkeypatch.setattr(locality_bank, "SHARE", 0.0)
    parts, in_pieces, of_pieces = read()
    assert parts == texts - 1 and asked == [1] * tokens
    assert in_pieces == pytest.approx(value, rel=1e-4) and value > 0.005
    torch.testing.assert_close(of_pieces, gradient, rtol=1e-3, atol=1e-6)


def test_steps_take_turns_with_the_groups_of_the_bank(tiny: EditableModel) -> None:
    prepared, name = editor(top_k=1000).prepare(tiny, CORPUS), weight_name(tiny)
    changed = {name: tiny.parameter(name) * 1.5}
    # Groups of two: texts 0 and 1, 2 and 3, 4. The middle one has none that counts, the first has one.
    bank = LocalityBank(tiny, prepared, 1, 1.0, 2, frozenset({1, 4}))
    values = [float(sum(bank.penalty(changed, step))) for step in range(4)]
    assert values[:2] == values[2:]
    texts = [prepared.meta["texts"][i] for i in (1, 4)]
    before = predictions(tiny, texts)
    tiny.overwrite(name, changed[name])
    for value, text, old in zip(values, texts, before, strict=False):
        assert value == pytest.approx(full_divergence(tiny, [old], [text]), rel=1e-3)


# ------------------------------------------------------------ the bank


def test_the_bank_keeps_the_base_predictions_even_under_an_edit(tiny: EditableModel) -> None:
    by = editor()
    clean = by.prepare(tiny, CORPUS)
    tiny.push(edit(tiny, SIX_REQUESTS[0]))
    state = tiny.state_digest()
    assert by.prepare(tiny, CORPUS).digest == clean.digest
    assert tiny.state_digest() == state


def test_top_tokens_and_the_rest_hold_all_mass(tiny: EditableModel) -> None:
    prepared = editor(top_k=16).prepare(tiny, CORPUS)
    kept, rest = prepared.tensors["log_probs"], prepared.tensors["log_rest"]
    assert kept.shape == (sum(prepared.meta["lengths"]), 16)
    torch.testing.assert_close(kept.exp().sum(-1) + rest.exp(), torch.ones(len(kept)))


def test_a_corpus_without_text_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="no token"):
        editor().prepare(tiny, Corpus((" ", "")))


def test_texts_that_name_an_edited_subject_are_out_of_the_bank() -> None:
    texts = ("Łódź lies in Poland.", "The capital of FRANCE is Paris.", "A small boat.")
    assert out_of_scope(texts, ["France"]) == {0, 2}
    assert out_of_scope(texts, ["łódź", "France", ""]) == {2}
    assert out_of_scope(texts, []) == {0, 1, 2}


def test_subjects_of_earlier_edits_stay_out_of_the_bank(tiny: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[frozenset[int]] = []
    penalty = LocalityBank.penalty

    def watched(self: LocalityBank, parameters: dict[str, torch.Tensor], step: int) -> Iterator[torch.Tensor]:
        seen.append(self.allowed)
        return penalty(self, parameters, step)

    monkeypatch.setattr(LocalityBank, "penalty", watched)
    by = editor()
    prepared = prepared_once(by, tiny)
    for asked in (SIX_REQUESTS[0], SIX_REQUESTS[4]):
        tiny.push(by.edit(tiny, batch_of([asked]), prepared))
    used = [prepared.meta["texts"][i] for i in seen[-1]]
    assert used
    assert not any("France" in text or "Ada Lovelace" in text for text in used)
    first = [prepared.meta["texts"][i] for i in seen[0]]
    assert any("France" in text for text in first)


# ------------------------------------------------------------ the edit


def test_the_penalty_holds_the_predictions_on_other_texts(tiny: EditableModel) -> None:
    asked = SIX_REQUESTS[3]
    texts = ["A small boat went up the river in the evening, because the wind was good."]
    before, drift = predictions(tiny, texts), {}
    for gamma in (0.0, 3.0):
        tiny.push(edit(tiny, asked, gamma=gamma, texts_per_step=8))
        drift[gamma] = full_divergence(tiny, before, texts)
        assert tiny.score([Ask(asked.prompt, asked.target_new)])[0].exact
        tiny.rollback(0)
    assert drift[3.0] < 0.7 * drift[0.0]


def test_states_kept_from_one_edit_serve_the_next_and_not_another_model_state(tiny: EditableModel) -> None:
    by, name = editor(), weight_name(tiny)
    prepared = prepared_once(by, tiny)
    by.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
    warm = by.edit(tiny, batch_of(SIX_REQUESTS[1:2]), prepared)
    assert torch.equal(warm.dense(name), editor().edit(tiny, batch_of(SIX_REQUESTS[1:2]), prepared).dense(name))
    tiny.push(edit(tiny, SIX_REQUESTS[2], layers=(0,)))
    moved = by.edit(tiny, batch_of(SIX_REQUESTS[1:2]), prepared)
    assert torch.equal(moved.dense(name), editor().edit(tiny, batch_of(SIX_REQUESTS[1:2]), prepared).dense(name))


def test_without_weight_or_texts_it_is_plain_fine_tuning(tiny: EditableModel) -> None:
    asked, name = SIX_REQUESTS[0], weight_name(tiny)
    unweighted = edit(tiny, asked, gamma=0.0).dense(name)
    by = editor()
    nothing_left = by.prepare(tiny, Corpus((f"{asked.subject} was born in London.",)))
    torch.testing.assert_close(by.edit(tiny, batch_of([asked]), nothing_left).dense(name), unweighted)


def test_an_edit_without_its_bank_is_refused(tiny: EditableModel) -> None:
    for prepared in (NOTHING, Prepared({"factor.1": torch.ones(1)})):
        with pytest.raises(ValueError, match="prepare it first"):
            editor().edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared)
