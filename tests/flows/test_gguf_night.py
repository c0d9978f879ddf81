"""A night on a base that is a `.gguf` file: promoted, pulled and audited as any other, and from the folder made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from flows.cli import app
from tasks.recheck.audit import audit
from tasks.serving.export import export
from tasks.settings import configure
from tests.flows.conftest import Home
from tests.flows.nights import config_of
from tests.gguf_files import TEMPLATE, write_gguf

pytestmark = pytest.mark.usefixtures("bare_nights")


def test_a_night_on_a_file_holds_and_goes_on_from_the_folder_made_of_it(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    home = Home(config_of(world, tmp_path / "home", model={"name": str(file)}))
    assert home.run().verdict == "promote"
    first = home.head().checkpoint.checkpoint_id
    assert audit(configure(home.config), deep=True).breaks == ()
    monkeypatch.setenv("ERRATA_HOME", str(home.path))
    monkeypatch.setenv("ERRATA_MODEL__NAME", str(file))
    pulled = CliRunner().invoke(app, ["pull", "--out", str(tmp_path / "pulled")])
    assert pulled.exit_code == 0, pulled.stderr
    AutoModelForCausalLM.from_pretrained(tmp_path / "pulled")
    assert AutoTokenizer.from_pretrained(tmp_path / "pulled").chat_template == TEMPLATE
    # The same base by another name: the lineage goes on.
    export(configure(home.config), "base", tmp_path / "folder")
    moved = Home({**home.config, "model": {"name": str(tmp_path / "folder")}})
    assert audit(configure(moved.config)).breaks == ()
    assert moved.run("night-02").verdict == "promote"
    assert moved.head().checkpoint.parent == first
