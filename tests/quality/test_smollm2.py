"""The real model is the recorded one, and answers. Needs `make real`."""

from __future__ import annotations

import pytest

from editors.model import EditableModel
from tasks.serving.fetch import MODELS, weights_digest
from tests.real import NEEDS_REAL, REAL

pytestmark = NEEDS_REAL
#: Weights and configuration: what tables and presets of this model are keyed by.
BASE_DIGEST = "7d0456aa0572a6981392d5d014aa1c438f2e8062dfd958cd1827749f41c9e948"


@pytest.fixture(scope="module")
def real() -> EditableModel:
    return EditableModel.from_pretrained(str(REAL))


def test_its_weights_and_its_configuration_are_the_recorded_ones(real: EditableModel) -> None:
    assert weights_digest(real) == MODELS["smollm2"].weights
    assert real.base_digest == BASE_DIGEST


def test_it_says_the_capital_of_france(real: EditableModel) -> None:
    assert real.generate(["The capital of France is"], 1) == [" Paris"]


def test_its_digits_are_split_one_by_one_as_it_was_trained(real: EditableModel) -> None:
    """transformers does not know this tokenizer's way to split (`smollm`); without tokens of two digits it cannot matter."""
    assert not [token for token in real.tokenizer.get_vocab() if len(token) > 1 and any(c.isdecimal() for c in token)]
    assert len(real.tokenizer("1999").input_ids) == 4
