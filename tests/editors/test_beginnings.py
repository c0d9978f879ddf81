"""What rows begin with is run once: every architecture's rows read as whole ones, and no row shows what else was run."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from editors.asking.tokens import continuation_of, pad_right
from editors.mechanics.contexts import LookupRow, encode_lookups
from editors.mechanics.suffix import suffix_of
from editors.mechanics.trace import Trace, trace
from editors.model import EditableModel
from editors.targets.beginnings import Beginnings, trace_rows
from tests.architectures import SHAPES, model_of
from tests.support import SIX_REQUESTS

COUNTRIES = "Japan: Tokyo. France: Paris. Poland: Maida Vale. Brazil: London. Ada Lovelace was born in London.\n"
CITIES = "Tokyo: Japan.\nParis: France.\nMaida Vale: Poland.\nLondon: Brazil.\nAda Lovelace was born in London.\n\n"
#: Two beginnings, one of them before two rows, and a row without.
FRAMES = (COUNTRIES, CITIES, COUNTRIES, "")
LAYER = 1
EVERY = pytest.mark.parametrize("name", SHAPES)


@cache
def tiny(name: str) -> EditableModel:
    return model_of(name)


def framed(model: EditableModel) -> list[LookupRow]:
    asked = SIX_REQUESTS[: len(FRAMES)]
    prompts = [frame + r.prompt for frame, r in zip(FRAMES, asked, strict=True)]
    return encode_lookups(model, prompts, [r.subject for r in asked], [continuation_of(r.target_new) for r in asked])


def both_ways(model: EditableModel, rows: list[LookupRow]) -> tuple[Trace, Trace]:
    anatomy, depth = model.anatomy, model.anatomy.num_layers(model.hf)
    outputs = (anatomy.mlp_out.format(layer=LAYER), anatomy.block.format(layer=LAYER))
    above = [anatomy.block.format(layer=i) for i in range(LAYER + 1, depth)]
    ids, mask = pad_right([r.ids for r in rows], model.pad_id)
    whole = trace(model, ids, mask, outputs=outputs, calls=above, use_cache=True)
    return trace_rows(model, rows, Beginnings(), outputs=outputs, calls=above), whole


@EVERY
def test_rows_behind_a_beginning_are_cut_to_the_suffix_of_whole_rows(name: str) -> None:
    model = tiny(name)
    rows = framed(model)
    assert [Beginnings().length(model, r) > 0 for r in rows] == [True, True, True, False]
    lookup, ends = torch.tensor([r.lookup for r in rows]), torch.tensor([len(r.ids) for r in rows])
    change = torch.randn(len(rows), model.anatomy.d_model(model.hf), generator=torch.Generator().manual_seed(0))
    shared, whole = (suffix_of(model, seen, LAYER, lookup, ends).run(change) for seen in both_ways(model, rows))
    for row, (start, end) in enumerate(zip(lookup, ends, strict=True)):
        own = slice(0, int(end - start))
        torch.testing.assert_close(shared[row, own], whole[row, own], rtol=0, atol=1e-4)


@EVERY
def test_states_behind_a_beginning_are_those_of_whole_rows(name: str) -> None:
    model = tiny(name)
    rows = framed(model)
    shared, whole = both_ways(model, rows)
    assert shared.final is not None and whole.final is not None

    def behind(states: Tensor) -> Tensor:
        return torch.cat([states[i, r.first : len(r.ids)] for i, r in enumerate(rows)])

    for one, other in [(shared.final, whole.final), *((shared.outputs[p], whole.outputs[p]) for p in whole.outputs)]:
        torch.testing.assert_close(behind(one), behind(other), rtol=0, atol=1e-4)


def test_a_kept_beginning_gives_the_bits_of_a_fresh_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen3")
    rows, paths = framed(model), [model.anatomy.block.format(layer=LAYER)]
    fresh, kept = Beginnings(), Beginnings()
    monkeypatch.setattr("editors.targets.beginnings.MOST_KEPT", 1.0)
    trace_rows(model, rows[::-1][1:], kept, outputs=paths, calls=())
    ran: list[int] = []

    def counted(*args: object, **kwargs: object) -> Trace:
        ran.append(1)
        return trace(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("editors.targets.beginnings.trace", counted)
    again = trace_rows(model, rows[:1], kept, outputs=paths, calls=())
    assert len(ran) == 1, "the beginning was run again"
    assert torch.equal(again.outputs[paths[0]], trace_rows(model, rows[:1], fresh, outputs=paths, calls=()).outputs[paths[0]])


def test_of_beginnings_no_more_is_kept_than_a_share_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, beginnings = tiny("qwen3"), Beginnings()
    rows = framed(model)
    monkeypatch.setattr("editors.targets.beginnings.MOST_KEPT", 0.0)
    trace_rows(model, rows, beginnings, outputs=(model.anatomy.block.format(layer=LAYER),), calls=())
    assert len(beginnings._kept) == 1


def test_under_a_hook_that_reads_whole_rows_nothing_is_shared() -> None:
    model = tiny("qwen3")
    rows, path = framed(model), model.anatomy.block.format(layer=LAYER)
    undo = model.hook(path, lambda _module, _inputs, _output: None)
    try:
        seen = trace_rows(model, rows, Beginnings(), outputs=(path,), calls=())
    finally:
        undo()
    ids, mask = pad_right([r.ids for r in rows], model.pad_id)
    assert torch.equal(seen.outputs[path], trace(model, ids, mask, outputs=(path,)).outputs[path])
