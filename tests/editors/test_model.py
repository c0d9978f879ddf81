"""The model with its stack of patches: weights, hooks, wraps, identity, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from editors.architectures.anatomies import anatomy_of
from editors.asking.calls import Call, Generation, LogitBatch, Runner
from editors.asking.runner import PlainRunner
from editors.base import Patch, PatchKind
from editors.errors import UnsupportedModel
from editors.model import EditableModel, Undo
from editors.patches.weight import Dense, WeightPatch
from tests.stand_ins import Ask
from tests.support import tiny_model, tiny_tokenizer


def first_matrix(model: EditableModel) -> str:
    return model.anatomy.mlp_out.format(layer=0) + ".weight"


def some_update(model: EditableModel, seed: int = 0) -> WeightPatch:
    value = torch.randn(32, 96, generator=torch.Generator().manual_seed(seed))
    return WeightPatch({first_matrix(model): Dense(value)})


class Shouting:
    """A wrapped runner that puts a word before every prompt."""

    def __init__(self, inner: Runner, word: str) -> None:
        self.inner, self.word = inner, word

    def logits(self, call: Call) -> Iterator[LogitBatch]:
        return self.inner.logits(Call(tuple(self.word + p for p in call.prompts), call.continuations))

    def generate(self, prompts: Sequence[str], options: Generation) -> list[str]:
        return self.inner.generate([self.word + p for p in prompts], options)


class HookPatch(Patch):
    """Doubles the output of one module."""

    kind: ClassVar[PatchKind] = "module"
    tensors: ClassVar[Mapping[str, Any]] = {}
    meta: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> HookPatch:
        return cls()

    def attach(self, model: EditableModel) -> Undo:
        return model.hook(model.anatomy.mlp.format(layer=2), lambda _m, _i, output: output * 2)


# ------------------------------------------------------------ weights


def test_weight_is_d_out_by_d_in_in_every_architecture(tiny: EditableModel) -> None:
    assert tiny.weight(tiny.anatomy.mlp_out, 0).shape == (32, 96)
    assert tiny.weight(tiny.anatomy.mlp_in[0], 0).shape == (96, 32)


def test_a_weight_times_a_key_is_the_value(tiny: EditableModel) -> None:
    seen = []
    undo = tiny.hook(tiny.anatomy.mlp_out.format(layer=1), lambda m, i, o: seen.append((i[0], o, getattr(m, "bias", None))))
    tiny.score([Ask("Paris lies in", "France")])
    undo()
    key, value, bias = seen[0]
    expected = key @ tiny.weight(tiny.anatomy.mlp_out, 1).t() + (0 if bias is None else bias)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_overwrite_keeps_the_first_original(tiny: EditableModel) -> None:
    name = first_matrix(tiny)
    base = tiny.parameter(name).clone()
    tiny.overwrite(name, base + 1)
    tiny.overwrite(name, base + 2)
    assert torch.equal(tiny.base_parameter(name), base)
    tiny.rollback(0)
    assert torch.equal(tiny.parameter(name), base)


def test_overwrite_refuses_another_shape(tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="shape"):
        tiny.overwrite(first_matrix(tiny), torch.zeros(3, 3))


def test_an_unknown_parameter_is_refused_by_name(tiny: EditableModel) -> None:
    with pytest.raises(UnsupportedModel, match="no_such"):
        tiny.parameter("no_such.weight")


def test_scratch_undoes_every_overwrite_inside_also_after_an_error(tiny: EditableModel) -> None:
    tiny.push(some_update(tiny))
    before, other = tiny.state_digest(), tiny.anatomy.mlp_out.format(layer=3) + ".weight"
    with pytest.raises(RuntimeError), tiny.scratch():
        for name in (first_matrix(tiny), other):
            tiny.overwrite(name, torch.zeros_like(tiny.parameter(name)))
        raise RuntimeError
    assert tiny.state_digest() == before
    tiny.rollback(0)
    assert tiny.state_digest() == tiny_model(tiny.anatomy.name).state_digest()


def test_a_scratch_inside_another_leaves_each_as_it_began(tiny: EditableModel) -> None:
    tiny.push(some_update(tiny))
    name, other = first_matrix(tiny), tiny.anatomy.mlp_out.format(layer=3) + ".weight"
    start = tiny.state_digest()
    with tiny.scratch():
        tiny.overwrite(other, torch.ones_like(tiny.parameter(other)))
        middle = tiny.state_digest()
        with tiny.scratch():
            for each in (name, other):
                tiny.overwrite(each, torch.zeros_like(tiny.parameter(each)))
        assert tiny.state_digest() == middle
        with tiny.scratch():
            for each in (name, other):
                tiny.overwrite(each, torch.zeros_like(tiny.parameter(each)))
    assert tiny.state_digest() == start
    tiny.rollback(0)
    assert tiny.state_digest() == tiny_model(tiny.anatomy.name).state_digest()


def test_a_scratch_brings_back_what_a_rollback_in_it_took_off(tiny: EditableModel) -> None:
    tiny.push(some_update(tiny))
    edited = tiny.parameter(first_matrix(tiny)).clone()
    with tiny.scratch():
        tiny.rollback(0)
        assert not torch.equal(tiny.parameter(first_matrix(tiny)), edited)
    assert torch.equal(tiny.parameter(first_matrix(tiny)), edited)


def test_a_scratch_copies_only_what_is_overwritten_in_it(tiny: EditableModel) -> None:
    tiny.push(some_update(tiny))
    name, other = first_matrix(tiny), tiny.anatomy.mlp_out.format(layer=3) + ".weight"
    with tiny.scratch():
        tiny.overwrite(other, torch.zeros_like(tiny.parameter(other)))
        assert tiny._scratches == [{other: None}]
        tiny.overwrite(name, torch.zeros_like(tiny.parameter(name)))
        (kept,) = tiny._scratches
        assert kept[name] is not None and kept[other] is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_added_by_rows_rounds_as_one_added_whole(
    tiny: EditableModel, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editors.model.ROWS_AT_ONCE", 7)
    model = EditableModel(tiny.hf.to(dtype), tiny.tokenizer, name=tiny.name)  # pyright: ignore[reportArgumentType]
    name, weight = first_matrix(model), model.weight(model.anatomy.mlp_out, 0)
    delta = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    wanted = (weight.float() + delta).to(dtype)
    model.add_to_weight(name, delta)
    assert torch.equal(model.weight(model.anatomy.mlp_out, 0), wanted)


# ------------------------------------------------------------ the stack


def test_thousands_of_updates_leave_no_rounding_behind(tiny: EditableModel) -> None:
    before = tiny.state_digest()
    for seed in range(50):
        tiny.push(some_update(tiny, seed))
    tiny.rollback(0)
    assert tiny.state_digest() == before


def test_hooks_and_weights_come_off_together(tiny: EditableModel) -> None:
    before = tiny.next_token_log_probs(["Paris"])
    for patch in (some_update(tiny), HookPatch(), some_update(tiny, 1)):
        tiny.push(patch)
    tiny.rollback(2)
    after_two = tiny.next_token_log_probs(["Paris"])
    tiny.rollback(1)
    assert (tiny.next_token_log_probs(["Paris"]) != after_two).any()
    tiny.rollback(0)
    assert (tiny.next_token_log_probs(["Paris"]) == before).all()


@pytest.mark.parametrize("depth", [-1, 2])
def test_a_depth_outside_the_stack_is_refused(depth: int, tiny: EditableModel) -> None:
    tiny.push(some_update(tiny))
    with pytest.raises(ValueError, match="roll back"):
        tiny.rollback(depth)


def test_a_patch_that_fails_half_way_leaves_the_stack_as_it_was(tiny: EditableModel) -> None:
    tiny.push(some_update(tiny))
    tiny.push(HookPatch())
    before, said = tiny.state_digest(), tiny.next_token_log_probs(["Paris"])
    wrong = WeightPatch({first_matrix(tiny): Dense(torch.ones(32, 96)), "zzz.weight": Dense(torch.ones(2))})
    with pytest.raises(UnsupportedModel, match="zzz"):
        tiny.push(wrong)
    assert tiny.state_digest() == before
    assert (tiny.next_token_log_probs(["Paris"]) == said).all()


def test_digest_follows_patches_and_comes_back_with_them(tiny: EditableModel) -> None:
    digests = [tiny.digest]
    for seed in (0, 1):
        tiny.push(some_update(tiny, seed))
        digests.append(tiny.digest)
    assert len(set(digests)) == 3
    tiny.rollback(1)
    assert tiny.digest == digests[1]


def test_state_digest_sees_a_change_that_no_patch_made(tiny: EditableModel) -> None:
    before = tiny.state_digest()
    tiny.parameter(first_matrix(tiny))[0, 0] += 1
    assert tiny.state_digest() != before
    assert tiny.digest == tiny_model(tiny.anatomy.name).digest


def test_a_wrap_changes_every_call_and_its_undo_takes_it_off(tiny: EditableModel) -> None:
    plain = tiny.next_token_log_probs(["Tokyo Paris"])
    undo = tiny.wrap(lambda inner: Shouting(inner, "Tokyo "))
    assert (tiny.next_token_log_probs(["Paris"]) == plain).all()
    undo()
    assert isinstance(tiny.runner, PlainRunner)


# ------------------------------------------------------------ answers


def test_scores_are_those_of_the_plain_model_row_by_row(tiny: EditableModel) -> None:
    asked = [Ask("Ada Lovelace was born in", "New York City"), Ask("Paris", "is"), Ask("", "The capital")]
    for ask, answer in zip(asked, tiny.score(asked), strict=True):
        ids = tiny.tokenizer(f"{ask.prompt} {ask.answer}")["input_ids"]
        start = len(tiny.tokenizer(ask.prompt)["input_ids"])
        if start == 0:
            ids, start = [tiny.tokenizer.bos_token_id, *ids], 1
        with torch.no_grad():
            rows = tiny.hf(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(float(rows[i - 1, ids[i]]) for i in range(start, len(ids)))
        assert answer.log_prob == pytest.approx(expected, abs=1e-4)


def test_log_likelihoods_are_those_of_hugging_face(tiny: EditableModel) -> None:
    texts = ["The capital of France is Paris.", "Łódź lies in Poland"]
    for text, (total, count) in zip(texts, tiny.log_likelihoods(texts), strict=True):
        ids = torch.tensor([[tiny.tokenizer.bos_token_id, *tiny.tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            loss = float(tiny.hf(ids, labels=ids).loss)
        assert count == ids.shape[1] - 1
        assert total == pytest.approx(-loss * count, rel=1e-4)


def test_a_text_longer_than_the_context_is_read_at_its_end(tiny: EditableModel) -> None:
    long, short = "The capital of France is Paris. " * 60, "Łódź lies in Poland"
    (total, count), other = tiny.log_likelihoods([long, short])
    assert 0 < count < 128
    assert np.isfinite(total)
    assert other == pytest.approx(tiny.log_likelihoods([short])[0], rel=1e-5)


def test_a_prompt_longer_than_the_context_keeps_its_end(tiny: EditableModel) -> None:
    long = "The capital of France is Paris. " * 60 + "Ada Lovelace was born in"
    answer, other = tiny.score([Ask(long, "London"), Ask("Paris", "is")])
    assert np.isfinite(answer.log_prob)
    assert other.log_prob == pytest.approx(tiny.score([Ask("Paris", "is")])[0].log_prob, abs=1e-4)


def test_next_token_rows_are_distributions_in_the_order_of_the_prompts(tiny: EditableModel) -> None:
    prompts = ["Paris lies in the north of", "Ada", ""]
    rows = tiny.next_token_log_probs(prompts)
    np.testing.assert_allclose(np.exp(rows).sum(1), 1.0, rtol=1e-4)
    np.testing.assert_allclose(rows[1], tiny.next_token_log_probs(["Ada"])[0], atol=1e-4)


def test_sampling_is_seeded_and_leaves_other_random_streams_alone(tiny: EditableModel) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = tiny.generate(["Paris"], 8, sample=True, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert tiny.generate(["Paris"], 8, sample=True, seed=1) == first
    assert tiny.generate(["Paris"], 8, sample=True, seed=2) != first


def test_nothing_asked_is_nothing_answered(tiny: EditableModel) -> None:
    assert tiny.score([]) == []
    assert tiny.generate([], 3) == []


# ------------------------------------------------------------ loading and export


def test_an_export_is_a_plain_model_with_the_edits_in_it(tiny: EditableModel, tmp_path: Path) -> None:
    tiny.push(some_update(tiny))
    tiny.save_pretrained(tmp_path)
    again = EditableModel.from_pretrained(str(tmp_path))
    assert torch.equal(again.parameter(first_matrix(again)), tiny.parameter(first_matrix(tiny)))
    np.testing.assert_allclose(again.next_token_log_probs(["Paris"]), tiny.next_token_log_probs(["Paris"]), atol=1e-5)
    assert not again.patches


def test_an_export_can_be_of_half_precision(tiny: EditableModel, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path, torch.bfloat16)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert tiny.hf.dtype == torch.float32


def test_a_name_with_nothing_behind_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="nothing-here"):
        EditableModel.from_pretrained(str(tmp_path / "nothing-here"))


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UnsupportedModel, match="fast tokenizer"):
        EditableModel(tiny_model().hf, Slow())  # type: ignore[arg-type]


def test_an_architecture_without_a_table_is_refused() -> None:
    model = tiny_model().hf
    model.config.model_type = "mamba"
    with pytest.raises(UnsupportedModel, match="mamba"):
        anatomy_of(model)


def test_the_tokenizer_is_never_changed(tiny: EditableModel) -> None:
    side = tiny.tokenizer.padding_side
    tiny.generate(["Paris", "Ada Lovelace was"], 2)
    tiny.score([Ask("Paris", "is")])
    assert tiny.tokenizer.padding_side == side == tiny_tokenizer().padding_side


def test_an_export_does_not_say_how_its_tokenizer_was_loaded(tiny: EditableModel, tmp_path: Path) -> None:
    """HF_HUB_OFFLINE, or a hub that cannot be reached, would else give a checkpoint other bytes."""
    files = []
    for number, noted in enumerate(({}, {"local_files_only": True}, {"local_files_only": False})):
        tiny.save_pretrained(tmp_path / "base")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base", **noted)
        tokenizer.init_kwargs |= noted
        EditableModel(tiny.hf, tokenizer).save_pretrained(tmp_path / str(number))
        files.append((tmp_path / str(number) / "tokenizer_config.json").read_bytes())
    assert b"local_files_only" not in files[0] and len(set(files)) == 1
