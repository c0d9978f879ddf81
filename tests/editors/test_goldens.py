"""Seven editors against recorded updates of an independent plain form (`tests/goldens`), number for number.

Tolerances are stated in shares of an update's norm: the editors work in float32 with caches, padding and factors, the
references in float64 without any of them. Measured differences are below 1e-5.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editors.adapters.lora import Lora, LoraEditConfig
from editors.architectural.grace import Grace, GraceConfig
from editors.base import Corpus, Editor, Patch, Prepared
from editors.direct.alphaedit import AlphaEdit, AlphaEditConfig
from editors.direct.memit import Memit, MemitConfig
from editors.direct.pmet import Pmet, PmetConfig
from editors.direct.rome import Rome, RomeConfig
from editors.meta_learning.mend import Mend, MendConfig
from editors.model import EditableModel
from editors.patches.weight import WeightPatch
from editors.session import batch_of
from tests.goldens import make, text, world
from tests.goldens.gpt2 import forward
from tests.goldens.world import ADA, FACTS, FRANCE, GRACE, TURING, Array, Fact
from warehouse.records import EditRequest

ALL = [*FACTS, *world.GRACE_FACTS]
#: Shared by the locate-and-edit methods: the published objective, no stop behind the target, no bound on the update.
PUBLISHED: dict[str, Any] = {"contexts": (), "include_stop": False, "max_relative_norm": 1e6, "second_moment_tokens": 10**6}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    def spelt(piece: str) -> str:
        return piece.replace(" ", "Ġ")

    ids = {spelt(piece): number for number, piece in enumerate(world.VOCABULARY)}
    core = Tokenizer(models.BPE(ids, [(spelt(a), spelt(b)) for a, b in world.MERGES]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=world.END, eos_token=world.END, pad_token=world.PAD, clean_up_tokenization_spaces=False
    )


def fixed_model() -> EditableModel:
    config = GPT2Config(
        vocab_size=len(world.VOCABULARY), n_embd=world.D_MODEL, n_layer=world.DEPTH, n_head=world.HEADS, n_inner=world.D_MLP,
        n_positions=world.POSITIONS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        pad_token_id=1,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.config._attn_implementation = "eager"
    for name, value in world.weights().items():
        model.get_parameter(f"transformer.{name}").data.copy_(torch.from_numpy(value))
    return EditableModel(model, tokenizer(), name="fixed-gpt2")


def requests(*facts: Fact) -> list[EditRequest]:
    return [
        EditRequest(request_id=f"r{i}", prompt=f.prompt, subject=f.subject, relation="P19", target_new=f.target, source="test")
        for i, f in enumerate(facts)
    ]


def with_contexts(prepared: Prepared) -> Prepared:
    """The editor's own second moments, with the golden's prefixes in place of sampled ones."""
    return Prepared(prepared.tensors, {**prepared.meta, "templates": list(world.CONTEXTS), "groups": list(world.GROUPS)})


def prepared_by(editor: Editor, model: EditableModel) -> Prepared:
    return with_contexts(editor.prepare(model, Corpus(world.TEXTS)))


def close(found: Array | torch.Tensor, golden: Array, share: float) -> None:
    """The difference is at most that share of the golden's norm."""
    found = np.asarray(found, dtype=np.float64)
    assert found.shape == golden.shape
    assert np.linalg.norm(found - golden) <= share * np.linalg.norm(golden)


def compare(patch: Patch, golden: dict[str, Any], share: float) -> None:
    assert isinstance(patch, WeightPatch)
    assert set(patch.updates) == {f"transformer.{name}.weight" for name in golden}
    for name, update in golden.items():
        close(patch.dense(f"transformer.{name}.weight"), np.array(update), share)


# ------------------------------------------------------------ the two worlds are one


@pytest.mark.parametrize("name", sorted(make.REFERENCES))
def test_the_recorded_golden_is_what_its_reference_gives(name: str) -> None:
    recorded, now = make.recorded(name), make.plain(make.REFERENCES[name]())
    assert recorded.get("rules") == now.get("rules")
    old, new = make.arrays(recorded), make.arrays(now)
    assert list(old) == list(new)
    for path in old:
        # Another machine's libm and BLAS may differ in the last places of float64.
        np.testing.assert_allclose(new[path], old[path], rtol=1e-5, atol=1e-7)


def test_the_goldens_are_small() -> None:
    assert sum(path.stat().st_size for path in make.HERE.iterdir() if path.is_file()) < 1_000_000


@pytest.mark.parametrize("fact", ALL, ids=[f.prompt for f in ALL])
def test_both_sides_read_the_same_tokens(fact: Fact) -> None:
    row = text.answered(fact.prompt, fact.target)
    assert tokenizer()(f"{fact.prompt} {fact.target}")["input_ids"] == row.ids
    for line in (*world.TEXTS, *world.CONTEXTS):
        assert tokenizer()(line)["input_ids"] == text.ids(line)


def test_both_sides_stop_at_the_same_tokens() -> None:
    assert fixed_model().stops.nonzero()[:, 0].tolist() == text.STOPS


def test_both_sides_give_the_same_logits() -> None:
    ids = text.ids(TURING.prompt)
    with torch.no_grad():
        ours = fixed_model().hf(torch.tensor([ids])).logits[0]
    np.testing.assert_allclose(ours.numpy(), forward(world.weights(), ids).logits, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------ updates


@pytest.mark.parametrize(("form", "compat"), [("published", True), ("paper", False)])
@pytest.mark.parametrize(("name", "fact"), [("ada", ADA), ("turing", TURING)])
def test_rome_update_is_the_recorded_one(form: str, compat: bool, name: str, fact: Fact) -> None:
    model, editor = fixed_model(), Rome(RomeConfig(**PUBLISHED, **world.ROME, compat=compat))
    patch = editor.edit(model, batch_of(requests(fact)), prepared_by(editor, model))
    compare(patch, make.recorded("rome")[form][name], 1e-4)


def test_memit_update_is_the_recorded_one() -> None:
    model, editor = fixed_model(), Memit(MemitConfig(**PUBLISHED, **world.MEMIT, key_average="grouped"))
    compare(editor.edit(model, batch_of(requests(*FACTS)), prepared_by(editor, model)), make.recorded("memit"), 1e-4)


def test_pmet_update_is_the_recorded_one() -> None:
    model, editor = fixed_model(), Pmet(PmetConfig(**PUBLISHED, **world.PMET))
    compare(editor.edit(model, batch_of(requests(*FACTS)), prepared_by(editor, model)), make.recorded("pmet"), 1e-4)


def test_alphaedit_updates_of_two_batches_are_the_recorded_ones() -> None:
    model, editor = fixed_model(), AlphaEdit(AlphaEditConfig(**PUBLISHED, **world.ALPHAEDIT, key_average="grouped"))
    prepared, golden = prepared_by(editor, model), make.recorded("alphaedit")
    for name, facts in (("first", (ADA, FRANCE)), ("second", (GRACE, TURING))):
        patch = editor.edit(model, batch_of(requests(*facts)), prepared)
        compare(patch, golden[name], 1e-4)
        model.push(patch)


def test_grace_codebook_is_the_recorded_one_after_every_edit() -> None:
    numbers = {k: v for k, v in world.GRACE_NUMBERS.items() if k not in ("distance", "output_size")}
    model, editor, golden = fixed_model(), Grace(GraceConfig(**numbers, site="block", start="warm")), make.recorded("grace")
    prepared = Prepared(meta={k: world.GRACE_NUMBERS[k] for k in ("distance", "output_size")})
    for number, request in enumerate(requests(*world.GRACE_FACTS), start=1):
        model.push(editor.edit(model, batch_of([request]), prepared))
        (book,) = model.memories.values()
        # An editor's widened radius is a ten-thousandth longer, so that no rounding leaves the prompt outside.
        np.testing.assert_allclose(book.radii.numpy(), golden["radii"][f"after {number}"], rtol=2e-4)
    assert {"new", "split", "widen", "again"} <= set(golden["rules"])
    close(book.keys, np.array(golden["keys"]), 1e-4)
    close(book.values, np.array(golden["values"]), 1e-4)


def test_mend_update_is_the_recorded_one() -> None:
    editor = Mend(MendConfig(layers=(1, 2), rank=world.MEND_RANK, max_relative_norm=1e6))
    tensors = {}
    for name, value in world.mend_net().items():
        first, *rest = name.split(" ")
        tensor = torch.tensor(value, dtype=torch.float32)
        path = first if "x" in first.split(".")[0] else f"transformer.{first}"
        # A step is learnt as a logarithm, in units of the weight; the golden gives the step itself.
        if rest == ["step"]:
            tensors |= {f"{path}|step": tensor.log(), f"{path}|unit": torch.ones(())}
        else:
            tensors["|".join([path, *rest])] = tensor
    patch = editor.edit(fixed_model(), batch_of(requests(ADA, TURING)), Prepared(tensors))
    compare(patch, make.recorded("mend"), 1e-4)


def test_lora_update_is_the_recorded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora.layer import LoraLayer

    start = iter([torch.tensor(value, dtype=torch.float32) for value in world.lora_start().values()])

    def fixed(layer: Any, name: str, *_: Any) -> None:
        # The golden's numbers for peft's random ones; B is zero in both.
        layer.lora_A[name].weight.data.copy_(next(start))
        layer.lora_B[name].weight.data.zero_()

    monkeypatch.setattr(LoraLayer, "reset_lora_parameters", fixed)
    editor = Lora(LoraEditConfig(**world.LORA, gamma=0.0))
    patch = editor.edit(fixed_model(), batch_of(requests(ADA, FRANCE)), Prepared())
    assert next(start, None) is None, "every adapter took its own start"
    compare(patch, make.recorded("lora"), 1e-4)
