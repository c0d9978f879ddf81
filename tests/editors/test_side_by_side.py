"""Work on copies of a model: the same results in the same order, whatever the threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from editors.ledger import side_by_side as module
from editors.ledger.ledger import Ledger
from editors.ledger.side_by_side import side_by_side
from editors.model import EditableModel
from editors.patches.slots import SlotPatch
from editors.presets import load_editor
from editors.session import batch_of
from tests.support import CORPUS, SIX_REQUESTS, tiny_model

pytestmark = pytest.mark.law


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_results_stand_in_the_order_of_the_items_and_threads_are_as_before() -> None:
    seen: set[int] = set()

    def work(model: EditableModel, item: int) -> tuple[int, int]:
        seen.add(id(model))
        return item, torch.get_num_threads()

    assert side_by_side(tiny_model(), range(7), work) == [(i, 1) for i in range(7)]
    assert len(seen) == 3
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_a_model_that_is_too_large_to_copy_keeps_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COPIED_BYTES", 1000)
    model = tiny_model()
    assert side_by_side(model, [1, 2], lambda m, i: (m is model, i, torch.get_num_threads())) == [(True, 1, 3), (True, 2, 3)]


@pytest.mark.usefixtures("three_threads")
def test_a_failure_is_raised_and_threads_are_as_before() -> None:
    def work(_: EditableModel, item: int) -> int:
        if item > 1:
            raise ValueError(f"item {item}")
        return item

    with pytest.raises(ValueError, match=r"item [2-5]"):
        side_by_side(tiny_model(), range(6), work)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_ledgers_patch_is_the_same_with_any_number_of_threads(kind: str) -> None:
    """Also on a model that wears slots: the copies must be silent too."""
    first = load_editor("ledger", tiny_model(kind), {"value_steps": 8, "stop_loss": None})
    assert isinstance(first, Ledger)
    prepared = first.prepare(tiny_model(kind), CORPUS)

    def made(threads: int) -> SlotPatch:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            editor, model = Ledger(first.config), tiny_model(kind)
            model.push(editor.edit(model, batch_of([SIX_REQUESTS[0].model_copy(update={"target_new": "Tokyo"})]), prepared))
            return editor.edit(model, batch_of(SIX_REQUESTS), prepared)
        finally:
            torch.set_num_threads(before)

    assert made(1).digest == made(3).digest
