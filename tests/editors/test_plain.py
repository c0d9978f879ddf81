"""The plain form that is served: slots without biases, in every architecture and dtype, under the base's own names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from editors.architectures.anatomies import anatomy_of
from editors.base import Prepared
from editors.errors import PatchError, UnsupportedModel
from editors.export.constant import Constant, constant_of, read_constants
from editors.export.form import SHARPNESS, PlainForm, room_for
from editors.export.plain import export_plain, plain_model, sites_beside
from editors.export.slots import read_columns, silence, slot_columns
from editors.export.wide import Columns, wide_model
from editors.ledger.ledger import Ledger
from editors.model import EditableModel, fuse_activations
from editors.patches.neurons import NeuronPatch, activation_of
from editors.patches.slots import SlotBook, SlotPatch, slots_name
from editors.presets import load_editor
from editors.session import batch_of
from tests.architectures import SHAPES, steady_model
from tests.architectures import plain_model as tiny_plain
from tests.support import CORPUS, SIX_REQUESTS, tiny_model, tiny_tokenizer

#: Falcon's feed-forward has neither biases nor a second projection; OLMo 2's reads the residual stream without a norm.
HOLD_NONE = ("falcon", "falcon-two-norms", "falcon-one-norm", "olmo2")
NAMES = [name for name in (*SHAPES, "gpt2", "llama") if name not in HOLD_NONE]
GATED = [name for name in NAMES if steady_model(name).anatomy.gated]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROMPTS = [r.prompt for r in SIX_REQUESTS]
#: Some of them open no slot, whatever the model.
OTHERS = [
    "A small boat went up the river in the evening, because the wind was good.", "the wind", "12 3456 xyz", "up the river",
    "because evening, in river the up went boat", "a", "the", "in the evening", "good", "boat", "1", "?", "went up",
    "The boat went up in the evening. The wind was good, and the river small.",
]  # fmt: skip
#: Largest difference of a log-probability between hooks and columns, over the largest that the edits make: the dtype's
#: rounding, and the spread of `v . h`, which is wide in models of 32 numbers.
SHARE = 0.06
#: Nearer to a ramp the activation's tail and the dtype's rounding may show.
SHUT = {torch.float32: -0.75, torch.bfloat16: -1.75, torch.float16: -1.75}


@cache
def world(name: str) -> tuple[Ledger, Prepared]:
    """One editor for all tests of an architecture: it remembers the slots that it has solved."""
    made = load_editor(
        "ledger", tiny_model("llama"), {"value_steps": 20, "value_lr": 1.0, "clamp_norm": 200.0, "stop_loss": None}
    )
    assert isinstance(made, Ledger)
    return made, made.prepare(steady_model(name), CORPUS)


@cache
def patch_of(name: str, subset: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> SlotPatch:
    editor, prepared = world(name)
    return editor.edit(steady_model(name), batch_of([SIX_REQUESTS[i] for i in subset]), prepared)


@cache
def constants_of(name: str) -> dict[str, Constant]:
    model = steady_model(name)
    return read_constants(model, CORPUS, (model.anatomy.mlp.format(layer=1),)) if model.anatomy.gated else {}


def worn(name: str, dtype: torch.dtype = torch.float32, patches: Iterable[SlotPatch] = ()) -> EditableModel:
    model = steady_model(name, dtype)
    for patch in patches or [patch_of(name)]:
        model.push(patch)
    return model


def form(name: str, **more: object) -> PlainForm:
    return replace(PlainForm(constants=constants_of(name), reserve=8), **more)  # pyright: ignore[reportArgumentType]


def loaded(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """As any program loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")


def logits(model: torch.nn.Module, text: str) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([tiny_tokenizer()(text)["input_ids"]])).logits.float()


def state_of(folder: Path) -> dict[str, Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def nearest(model: EditableModel, columns: Columns, text: str) -> float:
    """How near any slot comes to opening at any token of a text, hooked or as columns: 0 where its ramp begins, in widths.

    Where a slot's threshold is a hundred widths, `v . h = 0.99` moves it by one.
    """
    seen: list[float] = []
    book: SlotBook = model.memories[slots_name(model.anatomy.mlp.format(layer=1))]
    g, biases = book.gates, torch.zeros(len(columns)) if columns.biases is None else columns.biases

    def note(_module: object, inputs: tuple[Tensor, ...], _output: object) -> None:
        h = inputs[0].float()
        seen.append(float(((h @ g.filters.t() - g.offsets - g.low) / (g.high - g.low)).max()))
        seen.append(float((h @ columns.keys.t() + biases)[..., ::2].max()) / SHARPNESS)

    undo = model.hook(model.anatomy.mlp.format(layer=1), note)
    logits(model.hf, text)
    undo()
    return max(seen)


# ------------------------------------------------------------ what it answers


@pytest.mark.parametrize(("name", "dtype"), product(NAMES, DTYPES))
def test_it_answers_as_the_hooked_model_does_and_beside_its_edits_as_the_base_to_the_bit(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = worn(name, dtype)
    export_plain(model, tmp_path, form(name, dtype=dtype))
    plain = EditableModel(loaded(tmp_path, dtype), tiny_tokenizer())  # pyright: ignore[reportArgumentType]
    said, saw = (torch.tensor(m.next_token_log_probs(PROMPTS)) for m in (plain, model))
    model.rollback(0)
    base = torch.tensor(model.next_token_log_probs(PROMPTS))
    near = SHARE * float((saw - base).abs().max()) + 8 * torch.finfo(dtype).eps
    assert float((said - saw).abs().max()) < near
    # Where an answer leads by more than that, it is the answer.
    first, second = saw.topk(2).values.unbind(1)
    clear = first - second > 2 * near
    assert torch.equal(said.argmax(1)[clear], saw.argmax(1)[clear])
    model.push(patch_of(name))
    site = model.anatomy.mlp.format(layer=1)
    columns = slot_columns(model, site, model.memories[slots_name(site)], form(name, dtype=dtype))
    shut = [text for text in OTHERS if nearest(model, columns, text) < SHUT[dtype]]
    model.rollback(0)
    padded = wide_model(model, {}, form(name, dtype=dtype))[0]
    assert shut
    for text in shut:
        # The base at that width: a product of half precision may sum a longer row in another order.
        assert torch.equal(logits(plain.hf, text), logits(fuse_activations(padded), text))
        if dtype == torch.float32:
            assert torch.equal(logits(plain.hf, text), logits(model.hf, text))


# ------------------------------------------------------------ what it is


@pytest.mark.parametrize("name", [*NAMES, "falcon", "olmo2"])
def test_no_tensor_and_no_entry_has_a_name_that_the_base_has_not(name: str, tmp_path: Path) -> None:
    """Loaders skip what they do not know, without a word: SGLang and vLLM build gated feed-forwards with `bias=False`."""
    model = steady_model(name)
    model.save_pretrained(tmp_path / "base")
    if name not in HOLD_NONE:
        model.push(patch_of(name))
    made = export_plain(model, tmp_path / "out", form(name))
    base, out = (state_of(tmp_path / f) for f in ("base", "out"))
    assert base.keys() == out.keys()
    first, second = (json.loads((tmp_path / f / "config.json").read_text(encoding="utf-8")) for f in ("base", "out"))
    assert first.keys() == second.keys()
    assert {key for key in first if first[key] != second[key]} <= {model.anatomy.inner}
    assert second[model.anatomy.inner] == made.room.width and made.room.width % 64 == 0


@pytest.mark.parametrize("name", NAMES)
def test_beside_its_columns_it_has_the_bits_of_the_base(name: str, tmp_path: Path) -> None:
    model = worn(name)
    base = {n: t.clone() for n, t in model.hf.state_dict().items()}
    out, a = plain_model(model, form(name)), model.anatomy
    for tensor, found in out.hf.state_dict().items():
        if found.shape == base[tensor].shape:
            assert torch.equal(found, base[tensor])
            continue
        one = next(d for d in range(found.dim()) if found.shape[d] != base[tensor].shape[d])
        halves = 2 if a.gated and len(a.mlp_in) == 1 and tensor.startswith(tuple(p.format(layer=1) for p in a.mlp_in)) else 1
        if halves == 1 and tensor not in _edited(model):
            halves = found.shape[one] // out.room.width
        parts, wanted = found.chunk(halves, dim=one), base[tensor].chunk(halves, dim=one)
        for part, own in zip(parts, wanted, strict=True):
            assert torch.equal(part.narrow(one, 0, own.shape[one]), own)
            rest = part.narrow(one, own.shape[one], part.shape[one] - own.shape[one])
            columns = 2 * len(SIX_REQUESTS) if tensor in _edited(model) else 0
            assert not rest.narrow(one, columns, rest.shape[one] - columns).any()


def _edited(model: EditableModel) -> set[str]:
    paths = [p.format(layer=1) for p in (*model.anatomy.mlp_in, model.anatomy.mlp_out)]
    return {f"{p}.{kind}" for p in paths for kind in ("weight", "bias")}


@pytest.mark.law
@pytest.mark.parametrize("name", NAMES)
def test_a_set_of_slots_has_the_same_columns_whatever_the_order_it_was_made_in(name: str) -> None:
    orders = [[(0, 1, 2, 3, 4, 5)], [(5, 3), (0,), (4, 1, 2)], [(2,), (1,), (0,), (5,), (4,), (3,)]]
    made = [plain_model(worn(name, patches=[patch_of(name, part) for part in order]), form(name)) for order in orders]
    for other in made[1:]:
        assert other.places == made[0].places
        first, second = made[0].hf.state_dict(), other.hf.state_dict()
        assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.law
@pytest.mark.parametrize("name", GATED)
def test_the_rows_of_a_subject_are_its_own_whoever_stands_beside_it(name: str) -> None:
    few, all_of_them = (plain_model(worn(name, patches=[p]), form(name)) for p in (patch_of(name, (2,)), patch_of(name)))
    subject = SIX_REQUESTS[2].subject
    rows = []
    for made in (few, all_of_them):
        place, a = next(p for p in made.places if p.subject == subject), anatomy_of(made.hf)
        weight = made.hf.get_parameter(a.mlp_in[-1].format(layer=1) + ".weight").chunk(3 - len(a.mlp_in))[-1]
        rows.append(weight[list(place.columns)])
    assert torch.equal(*rows)


@pytest.mark.law
@pytest.mark.parametrize("name", NAMES)
def test_a_revert_gives_the_tensors_of_the_base_beside_zeros(name: str) -> None:
    editor, prepared = world(name)
    model = worn(name)
    model.push(editor.retract(model, [r.request_id for r in SIX_REQUESTS], prepared))
    reverted, full = plain_model(model, form(name)), plain_model(worn(name), form(name))
    assert reverted.room.width == full.room.width, "engines keep the shapes of a lineage"
    assert reverted.places == ()
    for tensor, found in reverted.hf.state_dict().items():
        own = model.hf.state_dict()[tensor]
        assert float(found.double().abs().sum()) == pytest.approx(float(own.double().abs().sum()), rel=1e-12)
    base = wide_model(steady_model(name), {}, form(name))[0]
    for text in OTHERS + PROMPTS:
        assert torch.equal(logits(reverted.hf, text), logits(base, text))
        assert torch.allclose(logits(reverted.hf, text), logits(steady_model(name).hf, text), atol=1e-5)


@pytest.mark.parametrize("name", GATED)
def test_one_subject_can_be_silenced_alone(name: str, tmp_path: Path) -> None:
    export_plain(worn(name), tmp_path, form(name))
    plain = loaded(tmp_path, torch.float32)
    for place in read_columns(tmp_path):
        silence(plain, place)  # pyright: ignore[reportArgumentType]
    base = wide_model(steady_model(name), {}, form(name))[0]
    for prompt in PROMPTS:
        assert torch.equal(logits(plain, prompt), logits(base, prompt))


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("activation", ["relu", None])
def test_neurons_are_folded_too(name: str, activation: str | None, tmp_path: Path) -> None:
    model = steady_model(name)
    site, own = model.anatomy.mlp.format(layer=1), activation or activation_of(model)
    states = patch_of(name).changes[SIX_REQUESTS[0].subject]
    assert states is not None
    query, value = states.states[:1], torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    key = 4 * query / query.square().sum()
    model.push(NeuronPatch(site, own, 0, key, torch.tensor([-2.5]), value, queries=query))
    base, text = steady_model(name), PROMPTS[0]
    plain = plain_model(model, form(name)).hf
    change = float((logits(model.hf, text) - logits(base.hf, text)).abs().max())
    assert float((logits(plain, text) - logits(model.hf, text)).abs().max()) < 0.1 * change


@pytest.mark.parametrize("editor", ["t_patcher", "calinet"])
@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2"])
def test_edits_of_other_editors_that_add_neurons_are_folded_too(name: str, editor: str, tmp_path: Path) -> None:
    model = steady_model(name)
    by = load_editor(editor, tiny_model("llama"))
    model.push(by.edit(model, batch_of(SIX_REQUESTS[:2]), by.prepare(model, CORPUS)))
    constants = read_constants(model, CORPUS, sites_beside(model)) if model.anatomy.gated else {}
    base = steady_model(name)
    base.save_pretrained(tmp_path / "base")
    export_plain(model, tmp_path / "out", PlainForm(constants=constants))
    tensors = state_of(tmp_path / "out")
    assert state_of(tmp_path / "base").keys() == tensors.keys()
    assert max(float(t.abs().max()) for t in tensors.values()) < 65_504 / 4
    for prompt in PROMPTS[:2]:
        said, saw, was = (logits(m, prompt) for m in (loaded(tmp_path / "out", torch.float32), model.hf, base.hf))
        change = float((saw - was).abs().max())
        assert change > 0.1 and float((said - saw).abs().max()) < 0.05 * change


@pytest.mark.parametrize("name", NAMES)
def test_keys_stay_within_float16(name: str) -> None:
    made = plain_model(worn(name), form(name, dtype=torch.float16)).hf
    assert max(float(t.float().abs().max()) for t in made.state_dict().values()) < 65_504 / 4


# ------------------------------------------------------------ its room


def test_the_width_of_a_lineage_stays_until_it_is_full_and_the_next_is_known() -> None:
    rooms = [room_for(1536, 2 * slots, reserve=256, parameters=3 * 576, layers=30) for slots in (0, 1, 255, 256, 257, 512, 513)]
    assert [r.width for r in rooms] == [2048, 2048, 2048, 2048, 2560, 2560, 3072]
    assert [r.slots_left for r in rooms] == [256, 255, 1, 0, 255, 0, 255]
    assert [r.next_width for r in rooms] == [2560, 2560, 2560, 2560, 3072, 3072, 3584]
    assert "room for 255 slots more, then 2560); a slot has 3456 parameters" in rooms[1].sentence


@pytest.mark.parametrize("own", [96, 1000, 1536, 8960])
def test_a_width_is_a_multiple_of_64_with_and_without_a_reserve(own: int) -> None:
    for reserve, used in product((0, 1, 100, 256), (0, 2, 130, 600)):
        room = room_for(own, used, reserve=reserve, parameters=1, layers=1)
        assert room.width % 64 == 0 and room.width >= own + used
        assert room_for(own, room.width - own, reserve=0, parameters=1, layers=1).width == room.width


# ------------------------------------------------------------ the constant direction


@pytest.mark.parametrize("name", GATED)
def test_the_constant_direction_answers_1_at_text_and_closer_to_it_at_own_states(name: str) -> None:
    (found,) = constants_of(name).values()
    assert found.is_steady and 0.9 < found.low <= found.high < 1.1
    for slot in patch_of(name).changes.values():
        assert slot is not None
        own = slot.states.double()
        off, before = (float((own @ vector.double() - 1).abs().max()) for vector in (found.at(slot.states), found.vector))
        assert off <= before + 1e-3


def test_no_states_leave_the_direction_as_it_is() -> None:
    (found,) = constants_of("llama").values()
    assert torch.equal(found.at(torch.zeros(0, 32)), found.vector.double())


def test_where_nothing_is_constant_a_gated_model_is_refused_and_left_as_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(600, 32, generator=generator)
    nothing = constant_of(states, states[:20], states[:10])
    assert not nothing.is_steady
    model = worn("qwen2")
    before = model.state_digest()
    with pytest.raises(UnsupportedModel, match=r"nothing is constant at model\.layers\.1\.mlp"):
        plain_model(model, PlainForm(constants={"model.layers.1.mlp": nothing}))
    assert model.state_digest() == before


@pytest.mark.parametrize(("name", "why"), [("falcon", "without biases"), ("olmo2", "without a norm")])
def test_an_architecture_that_holds_none_is_refused_and_left_as_it_was(name: str, why: str) -> None:
    model = steady_model(name)
    model.push(patch_of(name))
    before = model.state_digest()
    constants = read_constants(model, CORPUS, sites_beside(model))
    with pytest.raises(UnsupportedModel, match=why):
        plain_model(model, PlainForm(constants=constants))
    assert model.state_digest() == before


def test_a_direction_of_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="0 tokens"):
        constant_of(*(torch.zeros(0, 4) for _ in range(3)))


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3_text"])
def test_rows_that_were_written_make_the_same_model_again_and_changed_ones_are_refused(name: str) -> None:
    model, site = worn(name), "model.layers.1.mlp"
    made, a = plain_model(model, form(name)), model.anatomy
    ups = made.hf.get_parameter(a.mlp_in[-1].format(layer=1) + ".weight").chunk(3 - len(a.mlp_in))[-1][96 : 96 + 12].clone()
    again = plain_model(model, PlainForm(given={site: ups}, reserve=8))
    assert all(torch.equal(t, again.hf.state_dict()[n]) for n, t in made.hf.state_dict().items())
    for wrong in (ups * 3, -ups, torch.zeros_like(ups)):
        with pytest.raises(PatchError, match=r"columns 0 of model\.layers\.1\.mlp do not answer"):
            plain_model(model, PlainForm(given={site: wrong}))
    with pytest.raises(PatchError, match="11 columns"):
        plain_model(model, PlainForm(given={site: ups[:-1]}))


def test_sites_are_in_the_order_of_their_layers() -> None:
    model, none = steady_model("llama"), torch.zeros(0, 32)
    model.push(NeuronPatch("model.layers.3.mlp", "silu", 0, none, torch.zeros(0), none))
    model.push(patch_of("llama"))
    assert sites_beside(model) == ("model.layers.1.mlp", "model.layers.3.mlp")


# ------------------------------------------------------------ what travels with it


def test_generation_settings_chat_template_end_tokens_and_licence_travel(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tokenizer = tiny_tokenizer().__class__(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    hf = steady_model("llama").hf
    hf.save_pretrained(base)
    tokenizer.save_pretrained(base)
    # As published models have them: two end tokens, and what transformers does not save itself.
    GenerationConfig(eos_token_id=[0, 1], temperature=0.6, do_sample=True, top_p=0.9).save_pretrained(base)
    (base / "LICENSE").write_text("do as you like\n")
    (base / "Notice.txt").write_text("made by somebody\n")
    (base / "run.py").write_text("print()\n")
    model = EditableModel.from_pretrained(str(base))
    for number, patches in enumerate(([], [patch_of("llama")])):
        out = tmp_path / f"out-{number}"
        for patch in patches:
            model.push(patch)
        export_plain(model, out, form("llama"))
        assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
        settings = GenerationConfig.from_pretrained(out)
        assert (settings.eos_token_id, settings.temperature, settings.top_p) == ([0, 1], 0.6, 0.9)
        assert (out / "LICENSE").read_bytes() == (base / "LICENSE").read_bytes()
        assert (out / "Notice.txt").exists() and not (out / "run.py").exists()


def test_generation_settings_that_transformers_does_not_save_travel_as_they_are(tmp_path: Path) -> None:
    model = worn("llama")
    settings = model.hf.generation_config
    assert settings is not None
    settings.do_sample, settings.temperature, settings.eos_token_id = False, 0.7, [0, 3]
    export_plain(model, tmp_path, form("llama"))
    assert json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == [0, 3]


def test_a_model_that_is_in_no_folder_brings_no_licence(tmp_path: Path) -> None:
    export_plain(worn("llama"), tmp_path, form("llama"))
    assert not [p for p in tmp_path.iterdir() if p.name.lower().startswith("lic")]


def test_the_tiny_models_of_the_table_have_no_constant_direction_of_their_own() -> None:
    """So that a test on them says when a form needs one."""
    model = EditableModel(tiny_plain("mistral"), tiny_tokenizer())
    (found,) = read_constants(model, CORPUS, ("model.layers.1.mlp",)).values()
    assert not found.is_steady
