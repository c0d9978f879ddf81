"""Units that editors' numbers are given in: what is measured on a model, and what a space makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from editors import catalogue
from editors.asking.tokens import pad_right
from editors.mechanics.contexts import encode_lookups
from editors.mechanics.trace import trace
from editors.presets import sections, space_of
from editors.presets.scales import LayerScales, Scales, measure_scales
from editors.presets.search_space import search_space
from tests.architectures import model_of
from tests.support import SIX_REQUESTS, tiny_model

#: A layer whose block's output is three times as long as its feed-forward's; keys of norm 2 and sum 5.
PLAIN = Scales((LayerScales(12.0, 4.0, 4.0, 2.0, 5.0),) * 10, d_model=16, d_mlp=48)


@pytest.mark.parametrize(
    ("unit", "one"),
    [("block_step", 3.0), ("block_over_mlp", 3.0), ("key_step", 0.6), ("factor_step", 12 / (32 * (1 / 9) ** 0.5 * 2)),
     ("key_width", 48.0)],
)  # fmt: skip
def test_units_are_what_they_say(unit: str, one: float) -> None:
    assert PLAIN.unit(unit, 3) == pytest.approx(one)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_scales_are_those_of_the_states_at_the_lookup_token(kind: str) -> None:
    model, requests = tiny_model(kind), SIX_REQUESTS[:1]
    place, block = model.anatomy.mlp_out.format(layer=2), model.anatomy.block.format(layer=2)
    seen: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: object, args: tuple[torch.Tensor, ...], out: Any) -> None:
            seen[path], seen[f"{path}.in"] = out[0] if isinstance(out, tuple) else out, args[0]

        return hook

    for path in (place, block):
        model.hf.get_submodule(path).register_forward_hook(keep(path))
    ids = torch.tensor([model.tokenizer(requests[0].prompt)["input_ids"]])
    with torch.no_grad():
        model.hf(input_ids=ids)
    last = len(list(model.tokenizer(requests[0].subject)["input_ids"])) - 1
    key = seen[f"{place}.in"][0, last]
    mlp = seen[place][0, last].norm()
    expected = [seen[block][0, last].norm(), mlp, mlp, key.norm(), key.abs().sum()]
    found = measure_scales(model, [requests[0].prompt], [requests[0].subject])
    at = found.layers[2]
    assert (at.block, at.mlp, at.added, at.key, at.key_sum) == pytest.approx([float(x) for x in expected], rel=1e-4)
    assert (len(found.layers), found.d_model, found.d_mlp) == (4, 32, 96)


@pytest.mark.parametrize("name", ["gptj", "phi3", "olmo2", "gemma2", "gemma3_text"])
@torch.no_grad()
def test_a_small_step_of_a_unit_moves_the_block_by_that_share_of_its_norm(name: str) -> None:
    """In front of a norm as well: what the feed-forward adds is what comes out of it."""
    model, prompts, subjects = model_of(name), [r.prompt for r in SIX_REQUESTS], [r.subject for r in SIX_REQUESTS]
    scales, layer, small = measure_scales(model, prompts, subjects), 2, 0.01
    path, block = (at.format(layer=layer) for at in (model.anatomy.mlp_out, model.anatomy.block))
    rows = encode_lookups(model, prompts, subjects, [""] * len(prompts))
    ids, mask = pad_right([row.ids for row in rows], model.pad_id)
    at = (torch.arange(len(rows)), torch.tensor([row.lookup for row in rows]))
    before = trace(model, ids, mask, inputs=(path,), outputs=(block,))
    generator = torch.Generator().manual_seed(0)

    def moved(hook: Callable[..., torch.Tensor]) -> float:
        undo = model.hook(path, hook)
        after = trace(model, ids, mask, outputs=(block,)).outputs[block][at]
        undo()
        return float(((after - before.outputs[block][at]).norm(dim=1) / before.outputs[block][at].norm(dim=1)).median())

    signs = torch.randint(0, 2, (scales.d_model,), generator=generator) * 2.0 - 1
    step = small * scales.unit("block_step", layer)
    assert moved(lambda _m, _i, out: out + step * signs) == pytest.approx(small, rel=0.3)
    bound = small * scales.unit("block_over_mlp", layer) * signs / scales.d_model**0.5
    assert moved(lambda _m, _i, out: out + out.norm(dim=-1, keepdim=True) * bound) == pytest.approx(small, rel=0.3)
    # Every weight of a row by the step, in the direction of the key's entry.
    weights = small * scales.unit("key_step", layer) * signs
    assert moved(lambda _m, i, out: out + i[0].abs().sum(-1, keepdim=True) * weights) == pytest.approx(small, rel=0.3)


def test_layers_are_shares_of_the_depth_each_once_and_stretches_end_there() -> None:
    space = search_space({"layers": {"depth": [0.27, 0.3, 0.5], "stretch": 5}, "rank": 4})
    fitted = space.fitted(10, {})
    assert fitted.candidates["layers"].values == (3, 5)
    assert fitted.numbers({"layers": 5}, PLAIN) == {"rank": 4, "layers": [1, 2, 3, 4, 5]}
    assert fitted.numbers({"layers": 3}, PLAIN)["layers"] == [0, 1, 2, 3]
    assert space.fitted(4, {}).numbers({"layers": 1}, Scales(PLAIN.layers[:4], 16, 48))["layers"] == [0, 1]


def test_a_number_follows_the_scale_of_the_chosen_layer() -> None:
    layers = tuple(LayerScales(4.0 * (i + 1), 4.0, 4.0, 2.0, 5.0) for i in range(10))
    fitted = search_space({"layer": {"depth": [0.2, 0.5]}, "value_lr": {"block_step": [0.1]}}).fitted(10, {})
    found = [fitted.numbers({"layer": at, "value_lr": 0.1}, Scales(layers, 16, 48))["value_lr"] for at in (2, 5)]
    assert found == [0.3, 0.6]


@pytest.mark.parametrize(
    "given", [{"lr": {"feet": [1]}}, {"lr": {"choose": []}}, {"lr": {"choose": [1], "depth": [1]}}, {"lr": {}}]
)
def test_choices_in_no_known_unit_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"auto\.lr"):
        search_space(given)


@pytest.mark.parametrize("name", catalogue.names())
def test_every_editor_says_what_may_be_searched_in_fields_that_it_has(name: str) -> None:
    space, cls = space_of(name), catalogue.editor_class(name)
    assert space is not None
    fields = {*space.fixed, *space.candidates, *space.hosts}
    assert fields <= set(cls.config_class.model_fields)
    # Training takes longer than a search, so what trains gets one choice.
    assert not (cls.card.trains and space.is_searched)
    required = {n for n, f in cls.config_class.model_fields.items() if f.is_required()}
    assert required | set(cls.per_model) <= fields | set(sections(name).get("default", {}))
