"""Numbers that a search finds are as good as those that were tuned by hand, on the facts that both may see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from editors.presets import load_editor
from tasks.serving.models import base_model
from tasks.settings import Settings
from tasks.tuning.facts import tuning_set
from tasks.tuning.numbers import find_numbers
from tasks.tuning.trials import run_trial

pytestmark = pytest.mark.quality


def test_the_ledger_with_found_numbers_is_near_the_ledger_with_those_tuned_by_hand(
    prepared_home: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=prepared_home(tmp_path))
    model = base_model(settings)
    facts = tuning_set(settings, model, 12)
    by_hand = run_trial(load_editor("ledger", model), model, facts, settings.preparations, choice={}, values={})
    # As if the package had no section for this model.
    monkeypatch.setattr("editors.presets.model_key", lambda _: "gpt2-9x9")
    (found,) = find_numbers(settings, model, ["ledger"], tuning=facts, minutes=5)
    assert found.best is not None
    assert found.best.success >= by_hand.success - 0.1
    assert found.best.generalization >= by_hand.generalization - 0.1
    assert found.best.kept >= by_hand.kept - 0.1
