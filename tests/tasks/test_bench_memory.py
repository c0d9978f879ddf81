"""The meter of memory sees a copy of the model, and the case says what each editor took beside it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import numpy as np
import pytest
import torch

import tasks.speed.memory as memory
from editors.errors import EditRefused
from editors.mechanics import passes
from editors.model import EditableModel
from editors.presets import load_editor
from editors.session import batch_of
from tasks.settings import Settings
from tasks.speed.bench import measure_case
from tasks.speed.case import BenchContext
from tasks.speed.memory import EDITORS, PeakMemory, edit_memory
from tasks.speed.untuned import costed_editor
from tests.support import CORPUS, SIX_REQUESTS, prepared_once, tiny_model
from tests.tasks.small_world import knowing_model, small_world

CPU, MB = torch.device("cpu"), 2**20


@pytest.fixture(params=["the system's mark", "a thread that looks"])
def meter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PeakMemory:
    if request.param == "a thread that looks":
        monkeypatch.setattr(memory, "_mark_anew", lambda: False)
    elif not memory._mark_anew():
        pytest.skip("this system does not let the mark begin anew")
    return PeakMemory(CPU)


def test_memory_that_is_freed_again_counts_whoever_took_it(meter: PeakMemory) -> None:
    with meter:
        taken = torch.ones(40 * MB // 4)
        del taken
        for _ in range(10):
            np.ones(60 * MB // 8).sum()
    assert 55 * MB < meter.rise < 80 * MB


def test_what_was_freed_before_hides_nothing(meter: PeakMemory) -> None:
    # Pieces below the allocator's threshold, which it keeps when they are freed.
    before = [torch.ones(64 * 1024 // 4) for _ in range(640)]
    del before
    gc.collect()
    with meter:
        taken = [torch.ones(64 * 1024 // 4) for _ in range(640)]
        torch.ones(MB).sum()
        del taken
    assert meter.rise > 30 * MB


def test_a_block_that_takes_nothing_rises_by_next_to_nothing(meter: PeakMemory) -> None:
    with meter:
        pass
    assert meter.rise < 4 * MB


def test_bytes_of_a_model_count_a_shared_weight_once() -> None:
    model = tiny_model("gpt2")
    assert model.num_bytes == sum({p.data_ptr(): p.numel() * 4 for p in model.hf.parameters()}.values())
    assert model.num_bytes == 4 * model.hf.num_parameters()


def test_an_edit_is_measured_from_the_model_alone_and_leaves_it_as_it_was() -> None:
    model = tiny_model()
    state = model.state_digest()
    found = edit_memory(lambda: costed_editor("memit", model), model, CORPUS, SIX_REQUESTS[:2])
    assert (found.editor, found.refused) == ("memit", "")
    assert found.edit >= found.held >= 0 and found.seconds > 0
    assert model.state_digest() == state


def test_an_editor_that_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    editor = load_editor("ft_m", model)

    def refuse(*_: object) -> None:
        raise EditRefused("not this one")

    monkeypatch.setattr(type(editor), "edit", refuse)
    found = edit_memory(lambda: (editor, True), model, CORPUS, SIX_REQUESTS[:2])
    assert found.refused == "not this one" and found.shares(100)["refused"] == "not this one"


def test_the_case_has_a_share_for_each_editor(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "EDITORS", ("r_rome", "ft_m", "grace"))
    model: EditableModel = knowing_model()
    with small_world() as world:
        result = measure_case(
            "peak-memory", BenchContext(model, world, Settings(home=tmp_path_factory.mktemp("home"))), repeat=1
        )
    assert result.editor == "r_rome, ft_m, grace" and result.edits == 3
    assert result.details["model, bytes"] == model.num_bytes
    for name in ("r_rome", "ft_m", "grace"):
        assert set(result.details[name]) == {"edit", "of it held", "preparation"}
    assert result.details["largest edit"] == pytest.approx(
        max(result.details[n]["edit"] for n in ("r_rome", "ft_m", "grace")), abs=1e-3
    )
    assert set(EDITORS) >= {"ledger", "r_rome", "memit", "ultraedit", "ft_m", "lora", "grace"}


def test_what_is_freed_below_a_block_in_use_goes_back_when_it_is_asked_for() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim") or not Path("/proc/self/statm").exists():
        pytest.skip("this C library keeps what is freed, or the system does not say what is resident")
    # Small enough to come from the heap.
    blocks = [torch.ones(1 << 14) for _ in range(1000)]
    last = torch.ones(1 << 14)
    blocks.clear()
    before = memory._resident()
    passes.trim_heap()
    assert memory._resident() < before - (30 << 20) and float(last.sum()) == 1 << 14


@pytest.mark.parametrize(("worth", "calls"), [(1, True), (passes.WORTH_GIVING_BACK, False)])
def test_an_edit_of_a_large_model_gives_back_what_it_has_freed(
    worth: int, calls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []
    monkeypatch.setattr(passes, "WORTH_GIVING_BACK", worth)
    monkeypatch.setattr(passes, "trim_heap", lambda: given.append(True))
    model = tiny_model()
    for name in ("ledger", "memit"):
        given.clear()
        editor = load_editor(name, model)
        editor.edit(model, batch_of(SIX_REQUESTS[:1]), prepared_once(editor, model))
        assert bool(given) == calls, name
