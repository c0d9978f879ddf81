"""Which numbers an editor starts from, and what it says where there are none."""

from __future__ import annotations

import pytest

from editors.errors import UnsupportedModel
from editors.model import EditableModel
from editors.presets import load_editor
from tests.support import tiny_model


@pytest.fixture
def unknown() -> EditableModel:
    """A model whose shape no preset names."""
    model = tiny_model("gpt2")
    model.hf.config.n_embd = model.hf.config.hidden_size = 48
    return model


def test_the_ledger_asks_for_the_numbers_of_a_model_that_it_has_no_preset_for(unknown: EditableModel) -> None:
    with pytest.raises(UnsupportedModel, match=r"ledger needs a preset for 'gpt2-4x48' \(layer: .*value_lr: .*clamp_norm: "):
        load_editor("ledger", unknown)


def test_given_numbers_are_enough(unknown: EditableModel) -> None:
    wanted = {"layer": 2, "value_lr": 0.5, "clamp_norm": 4.0}
    found = load_editor("ledger", unknown, wanted).config.model_dump()
    assert {name: found[name] for name in wanted} == wanted


def test_a_missing_preset_names_editors_that_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editors.presets.model_key", lambda _: "gpt2-48x1600")
    with pytest.raises(UnsupportedModel, match=r"editor\.overrides, or choose an editor .* gpt2-48x1600: .*memit.*r_rome"):
        load_editor("ledger", tiny_model("gpt2"))
