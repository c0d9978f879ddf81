"""Slots as columns of a plain model: same answers without our code, every edit still removable."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from editors.errors import PatchError
from editors.export.form import OF_BEFORE, PlainForm
from editors.export.plain import Plain, export_plain, plain_model
from editors.export.slots import read_columns, silence
from editors.model import EditableModel
from editors.patches.slots import Slot, SlotPatch
from editors.patches.weight import LowRank, WeightPatch
from tests.editors.test_ledger import EVERY, KINDS, SIX_REQUESTS, book_of, wearing
from tests.support import tiny_model, tiny_tokenizer

#: The form of before is exact to rounding on any model, steady or not; tests/editors/test_plain.py has today's.
pytestmark = pytest.mark.law

TEXTS = [r.prompt + " " + r.target_new for r in EVERY] + ["A small boat went up the river"]
#: Largest difference of any logit between the hooked and the plain form; the tiny models' logits are of size 1 to 10.
TOLERANCE = 1e-4


@cache
def worn(kind: str) -> EditableModel:
    return wearing(kind, SIX_REQUESTS[:3], SIX_REQUESTS[3:])


def logits(model: torch.nn.Module, text: str) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tiny_tokenizer()(text)["input_ids"]])).logits


def furthest(one: torch.nn.Module, other: torch.nn.Module) -> float:
    return max(float((logits(one, t) - logits(other, t)).abs().max()) for t in TEXTS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loaded_plain_model_gives_the_same_logits_and_greedy_answers(kind: str, tmp_path: Path) -> None:
    model = worn(kind)
    export_plain(model, tmp_path, OF_BEFORE)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(plain) is type(model.hf)
    assert furthest(plain, model.hf) < TOLERANCE
    assert furthest(plain, tiny_model(kind).hf) > 1000 * TOLERANCE, "the edits would not show"
    prompts = [r.prompt for r in EVERY]
    reloaded = EditableModel(plain, AutoTokenizer.from_pretrained(tmp_path))
    assert reloaded.generate(prompts, 8) == model.generate(prompts, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_export_leaves_the_model_as_it_was(kind: str) -> None:
    model = worn(kind)
    digest, before = model.state_digest(), logits(model.hf, TEXTS[0])
    plain_model(model, OF_BEFORE)
    assert model.state_digest() == digest
    assert torch.equal(logits(model.hf, TEXTS[0]), before)


def sharp(model: EditableModel, sharpness: float) -> Plain:
    return plain_model(model, replace(OF_BEFORE, sharpness=sharpness))


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_falls_with_the_sharpness(kind: str) -> None:
    errors = [furthest(sharp(worn(kind), c).hf, worn(kind).hf) for c in (3.0, 1e4)]
    assert errors[1] < TOLERANCE
    assert errors[1] <= errors[0]


def test_a_model_of_relus_holds_slots_to_rounding() -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=3, n_head=4, n_inner=48, n_positions=64, vocab_size=420, initializer_range=0.1,
                        activation_function="relu", bos_token_id=0, eos_token_id=0)  # fmt: skip
    model = EditableModel(GPT2LMHeadModel(config), tiny_tokenizer())
    ids = torch.tensor([[5, 9, 40, 77]])
    seen: list[torch.Tensor] = []
    undo = model.hook("transformer.h.1.mlp", lambda _m, inputs, _o: seen.append(inputs[0]))
    model.hf(ids)
    undo()
    states = seen[0][0]
    mean = states.mean(0)
    vector = torch.linalg.pinv(states - mean) @ torch.tensor([1.0, -0.2, 0.1, 0.5])
    slot = Slot("x", (), states[:1], vector, own=0.9, foreign=0.2, value=torch.ones(32), mean=mean)
    model.push(SlotPatch("transformer.h.1.mlp", mean, 0.5, 1.0, {"x": slot}))
    plain = plain_model(model).hf
    assert torch.allclose(plain(ids).logits, model.hf(ids).logits, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_edit_stays_a_removable_pair_of_columns(kind: str, tmp_path: Path) -> None:
    model = wearing(kind, SIX_REQUESTS[:2])
    export_plain(model, tmp_path, OF_BEFORE)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    places = read_columns(tmp_path)
    assert {(p.subject, p.requests) for p in places} == {("Ada Lovelace", ("r1",)), ("Grace Hopper", ("r2",))}
    assert len({c for p in places for c in p.columns}) == 4
    ada, grace = SIX_REQUESTS[0].prompt, SIX_REQUESTS[1].prompt
    silence(plain, next(p for p in places if p.subject == "Ada Lovelace"))
    assert torch.allclose(logits(plain, ada), logits(tiny_model(kind).hf, ada), atol=TOLERANCE)
    assert torch.allclose(logits(plain, grace), logits(model.hf, grace), atol=TOLERANCE)


def test_weight_edits_under_the_slots_are_exported_with_them() -> None:
    model = tiny_model()
    name = "transformer.h.2.mlp.c_proj.weight"
    model.push(WeightPatch({name: LowRank(torch.ones(32, 1), torch.full((96, 1), 0.01))}))
    model.push(worn("gpt2").patches[0])
    plain = plain_model(model, OF_BEFORE).hf
    assert furthest(plain, model.hf) < TOLERANCE
    assert furthest(plain, worn("gpt2").hf) > TOLERANCE


def test_the_other_layers_are_padded_with_zeros_and_the_width_is_in_the_configuration() -> None:
    made = plain_model(worn("gpt2"), PlainForm(reserve=0))
    slots = len(book_of(worn("gpt2")).slots)
    assert made.hf.config.n_inner == made.room.width == 128
    assert (made.room.own, made.room.used, len(made.places)) == (96, 2 * slots, slots)
    columns = [made.hf.get_parameter(f"transformer.h.{layer}.mlp.c_proj.weight")[96:] for layer in range(4)]
    assert [bool(c.any()) for c in columns] == [False, True, False, False]
    assert not columns[1][2 * slots :].any()


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "slots.json").write_text("[{]")
    with pytest.raises(PatchError, match="export the model again"):
        read_columns(tmp_path)
