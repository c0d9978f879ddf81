"""A model whose weights lie on several devices: every editor finds on it what it finds on one that lies on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from editors import loading
from editors.errors import UnsupportedModel
from editors.export.plain import export_plain
from editors.ledger.side_by_side import side_by_side
from editors.model import EditableModel
from editors.patches.files import load_patch, save_patch
from editors.presets import load_editor
from editors.session import batch_of
from tests.architectures import SHAPES
from tests.editors.test_contract import whole_and_first
from tests.editors.test_devices import ASKED, is_worn_alike_and_taken_off, lie_on_the_cpu, says
from tests.elsewhere import OtherDevice, at_work, elsewhere, possible
from tests.matrix import EVERYWHERE, WHOLE, tiny
from tests.support import CORPUS, SIX_REQUESTS, prepared_once, tiny_model

#: Where the four blocks of a tiny model, its last norm and its head lie.
PLACES = {
    "two accelerators": ("elsewhere:0", "elsewhere:1", "elsewhere:1", "elsewhere:0", "elsewhere:1", "elsewhere:1"),
    "one and the CPU": ("elsewhere:0", "cpu", "cpu", "elsewhere:0", "cpu", "cpu"),
    "all of them": ("elsewhere:1", "cpu", "elsewhere:0", "elsewhere:1", "elsewhere:0", "cpu"),
}


def spread(kind: str, places: str) -> EditableModel:
    """A tiny model over pretended accelerators, its embedding on the first."""
    plain = tiny(kind)
    hf: Any = plain.hf
    hf.to(elsewhere())
    *blocks, norm, head = PLACES[places]
    for layer, where in enumerate(blocks):
        hf.get_submodule(plain.anatomy.block.format(layer=layer)).to(where)
    hf.get_submodule(plain.anatomy.final_norm).to(norm)
    if hf.config.tie_word_embeddings:
        hf.tie_weights()
    else:
        hf.get_output_embeddings().to(head)
    return EditableModel(hf, plain.tokenizer, name=plain.name)


def map_of(model: EditableModel, on_disk: tuple[int, ...]) -> dict[str, str]:
    """A device map, as accelerate writes it: these layers and the last norm on the disk, the rest on the CPU."""
    blocks = {model.anatomy.block.format(layer=i): i in on_disk for i in range(model.anatomy.num_layers(model.hf))}
    trunk = model.hf.base_model_prefix
    others = {f"{trunk}.{name}": False for name, _ in model.hf.base_model.named_children()} | {"lm_head": False}
    listed = model.anatomy.block.split(".{")[0]
    named = {name: far for name, far in (others | blocks).items() if name != listed} | {model.anatomy.final_norm: True}
    return {name: "disk" if far else "cpu" for name, far in named.items()}


def on_disk(kind: str, folder: Path, layers: tuple[int, ...] = (1, 2)) -> EditableModel:
    """A tiny model, some of it left in its files."""
    plain = tiny_model(kind)
    plain.save_pretrained(folder)
    return EditableModel.from_pretrained(str(folder), device_map=map_of(plain, layers))


@pytest.fixture
def devices() -> Iterator[torch.device]:
    if not possible():
        pytest.skip("this machine has a real accelerator, or a torch that cannot pretend two")
    with at_work() as first:
        yield first


def where(model: EditableModel) -> list[torch.device]:
    return [p.device for p in model.hf.parameters()]


def is_edited_as_on_one_device(name: str, model: EditableModel, here: EditableModel, folder: Path) -> None:
    """Prepared, edited, worn, read back from its file, taken off: all as by `here`, the same model on one device."""
    lay, state = where(model), model.state_digest()
    assert model.is_spread and not here.is_spread and model.base_digest == here.base_digest and state == here.state_digest()
    editor, prepared = load_editor(name, model), prepared_once(load_editor(name, here), here)
    patch = editor.edit(model, batch_of([ASKED]), prepared)
    own = load_editor(name, here).edit(here, batch_of([ASKED]), prepared)
    assert lie_on_the_cpu(patch) and model.state_digest() == state
    assert "meta" in {d.type for d in lay} or where(model) == lay
    assert list(patch.tensors) == list(own.tensors)
    for key, tensor in own.tensors.items():
        torch.testing.assert_close(patch.tensors[key], tensor, rtol=1e-3, atol=1e-4)
    before = whole_and_first(model, ASKED)
    save_patch(patch, folder / "patch")
    model.push(load_patch(folder / "patch"))
    here.push(own)
    is_worn_alike_and_taken_off(name, model, here, state, before)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_an_editor_edits_over_two_accelerators_and_the_cpu(name: str, devices: torch.device, tmp_path: Path) -> None:
    is_edited_as_on_one_device(name, spread("gpt2", "all of them"), tiny_model("gpt2"), tmp_path)


@pytest.mark.parametrize(
    ("name", "places"),
    [("ft_m", "two accelerators"), ("lora", "one and the CPU")],
)
def test_an_editor_edits_a_gated_untied_model_that_is_spread(
    name: str, places: str, devices: torch.device, tmp_path: Path
) -> None:
    is_edited_as_on_one_device(name, spread("llama", places), tiny_model("llama"), tmp_path)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_an_editor_edits_a_model_that_is_partly_left_on_the_disk(name: str, tmp_path: Path) -> None:
    kind = "llama" if name in ("ledger", "lora") else "gpt2"
    model = on_disk(kind, tmp_path / "model")
    is_edited_as_on_one_device(name, model, EditableModel.from_pretrained(model.name), tmp_path)


@pytest.mark.parametrize("name", ["memit", "ultraedit"])
def test_a_preparation_is_that_of_one_device(name: str, devices: torch.device) -> None:
    here = tiny_model("gpt2")
    prepared = load_editor(name, model := spread("gpt2", "all of them")).prepare(model, CORPUS)
    expected = prepared_once(load_editor(name, here), here)
    assert lie_on_the_cpu(prepared) and list(prepared.tensors) == list(expected.tensors)
    for key, tensor in expected.tensors.items():
        torch.testing.assert_close(prepared.tensors[key], tensor, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------ the model


@pytest.mark.parametrize(
    ("kind", "places"),
    [("gpt2", "two accelerators"), ("llama", "one and the CPU"), *((s, "all of them") for s in (*WHOLE, *SHAPES))],
)
def test_a_spread_model_is_the_model(kind: str, places: str, devices: torch.device) -> None:
    here, model = tiny(kind), spread(kind, places)
    prompts = [r.prompt for r in SIX_REQUESTS]
    assert len(set(where(model))) > 1 and model.device == elsewhere()
    assert model.base_digest == here.base_digest and model.parameter_names() == here.parameter_names()
    assert says(model)[0] == pytest.approx(says(here)[0], abs=1e-4)
    assert model.generate(prompts, 6) == here.generate(prompts, 6)
    assert model.generate(prompts, 6, sample=True, seed=5) == here.generate(prompts, 6, sample=True, seed=5)
    assert torch.equal(model.head_weight.cpu(), here.head.weight)


def test_what_is_shown_is_on_the_models_device_and_what_is_written_lies_where_it_lay(devices: torch.device) -> None:
    model, seen = spread("gpt2", "all of them"), []
    name = f"{model.anatomy.mlp_out.format(layer=0)}.weight"
    lay = dict(zip(model.parameter_names(), where(model), strict=True))
    assert lay[name] == elsewhere(1) and model.parameter(name).device == model.device == elsewhere(0)
    undo = model.hook(model.anatomy.mlp.format(layer=0), lambda _m, args, out: seen.extend([args[0].device, out.device]))
    state, plain = model.state_digest(), model.next_token_log_probs(["A"])
    assert set(seen) == {model.device}
    undo()
    model.overwrite(name, model.parameter(name) * 2)
    assert model.hf.get_parameter(name).device == lay[name]
    assert abs(model.next_token_log_probs(["A"]) - plain).max() > 1e-4
    model.rollback(0)
    assert model.state_digest() == state


def test_a_hook_that_writes_into_what_it_is_shown_is_heard(devices: torch.device) -> None:
    model = spread("gpt2", "two accelerators")
    plain = model.next_token_log_probs(["A"])
    undo = model.hook(model.anatomy.block.format(layer=1), lambda _module, _args, output: (output.mul_(2), None)[1])
    assert abs(model.next_token_log_probs(["A"]) - plain).max() > 1e-4
    undo()
    assert (model.next_token_log_probs(["A"]) == plain).all()


def test_a_weight_on_the_cpu_goes_back_when_a_pass_is_broken_off(devices: torch.device) -> None:
    model = spread("gpt2", "one and the CPU")
    lay = where(model)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    undo = model.hf.get_submodule(model.anatomy.mlp.format(layer=1)).register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model.next_token_log_probs(["A"])
    undo.remove()
    assert where(model) == lay
    assert model.next_token_log_probs(["A"]).shape[0] == 1


def test_a_weight_on_the_disk_comes_into_memory_when_it_is_written_and_no_other_does(tmp_path: Path) -> None:
    model = on_disk("gpt2", tmp_path / "model")
    name = f"{model.anatomy.mlp_out.format(layer=1)}.weight"
    on_the_disk = [n for n, p in model.hf.named_parameters() if p.is_meta]
    assert name in on_the_disk and model.device.type == "cpu"
    state, own = model.state_digest(), model.parameter(name)
    with model.scratch():
        model.overwrite(name, own + 1)
        assert torch.equal(model.parameter(name), own + 1) and model.changed_parameters() == [name]
    assert torch.equal(model.parameter(name), own) and model.state_digest() == state
    assert [n for n, p in model.hf.named_parameters() if p.is_meta] == [n for n in on_the_disk if n != name]


def test_a_spread_model_is_exported_whole(tmp_path: Path) -> None:
    model = on_disk("gpt2", tmp_path / "model")
    editor = load_editor("memit", model)
    model.push(editor.edit(model, batch_of([ASKED]), prepared_once(editor, model)))
    export_plain(model, tmp_path / "plain")
    model.save_pretrained(tmp_path / "saved")
    for folder in ("plain", "saved"):
        assert says(EditableModel.from_pretrained(str(tmp_path / folder))) == says(model)


def test_side_by_side_copies_no_spread_model(tmp_path: Path) -> None:
    model = on_disk("gpt2", tmp_path / "model")
    assert side_by_side(model, [1, 2], lambda worn, _item: worn is model) == [True, True]


def test_a_gguf_is_not_spread(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModel, match=r"without model\.device_map"):
        EditableModel.from_pretrained(str(tmp_path / "model.gguf"), device_map="auto")


def test_auto_fills_four_fifths_of_what_is_free_and_leaves_the_rest_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny_model("gpt2")
    plain.save_pretrained(tmp_path / "model")
    whole = EditableModel.from_pretrained(str(tmp_path / "model"), device_map="auto")
    assert not whole.is_spread
    monkeypatch.setattr(loading, "get_max_memory", lambda: {"cpu": whole.num_bytes})
    part = EditableModel.from_pretrained(str(tmp_path / "model"), device_map="auto")
    held = sum(p.numel() * p.element_size() for p in part.hf.parameters() if not p.is_meta)
    assert part.is_spread and 0.3 * whole.num_bytes < held <= loading.FILLED * whole.num_bytes
    assert part.base_digest == whole.base_digest and says(part) == says(whole)


def test_the_second_pretended_device_is_another_one(devices: torch.device) -> None:
    first, second = torch.ones(3).to(devices), torch.ones(3).to(elsewhere(1))
    operations: list[Callable[[], Any]] = [
        lambda: first + second, lambda: torch.cat([first, second]), lambda: first[second.long()], lambda: first.add_(second),
    ]  # fmt: skip
    for operation in operations:
        with pytest.raises((OtherDevice, RuntimeError), match="device"):
            operation()
    assert (first.to(second.device) + second).device == elsewhere(1)
