"""A night on a base that lies in several places is the night of the same base in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from editors import loading
from editors.model import EditableModel
from flows.cli import app
from tasks.recheck.audit import audit
from tasks.serving import models
from tasks.settings import configure
from tests.flows.conftest import Home
from tests.flows.nights import before_nights

pytestmark = pytest.mark.usefixtures("prefect_server", "without_page")


def test_a_night_on_a_base_that_auto_spreads_is_that_of_one_device(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_LOADED", {})
    name = world["model"]["name"]
    # So little is free that some of it stays on the disk.
    monkeypatch.setattr(loading, "get_max_memory", lambda: {"cpu": EditableModel.from_pretrained(name).num_bytes})
    whole = Home(before_nights(world, tmp_path / "whole"))
    spread = Home(before_nights(world, tmp_path / "spread", model={**world["model"], "device_map": "auto"}))
    assert whole.run().verdict == spread.run().verdict == "promote"
    settings, head = configure(spread.config), spread.head().checkpoint
    assert models.base_model(settings).is_spread
    assert head.checkpoint_id == whole.head().checkpoint.checkpoint_id
    assert audit(settings, deep=True).breaks == ()
    monkeypatch.setenv("ERRATA_HOME", str(spread.path))
    monkeypatch.setenv("ERRATA_MODEL__NAME", name)
    monkeypatch.setenv("ERRATA_MODEL__DEVICE_MAP", "auto")
    pulled = CliRunner().invoke(app, ["pull", "--out", str(tmp_path / "pulled")])
    assert pulled.exit_code == 0, pulled.stderr
    asked, served = ["Ada Lovelace was born in", "A small boat"], EditableModel.from_pretrained(str(tmp_path / "pulled"))
    assert served.generate(asked, 4) == models.at_checkpoint(settings, spread.store, head).generate(asked, 4)


@pytest.mark.parametrize("wrong", ["everywhere", "{}", '{"lm_head": 0}', "[1]"])
def test_a_device_map_that_is_none_is_refused_in_words(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setenv("ERRATA_MODEL__DEVICE_MAP", wrong)
    answer = CliRunner().invoke(app, ["status"])
    assert answer.exit_code != 0 and "JSON object such as" in answer.stderr
