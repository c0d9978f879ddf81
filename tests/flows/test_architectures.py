"""Every architecture through a night and its revert: promoted, pulled as a plain model, audited, taken back.

The flows and their steps are the real ones, without Prefect around them, which sees nothing of a model; what does not depend
on the model either (receiving and judging one update) is done once.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import Task
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from flows import nightly, revert
from flows.cli import app
from tasks.recheck.audit import audit
from tasks.serving.models import at_checkpoint
from tasks.settings import configure
from tests import matrix
from tests.architectures import tiny_editor
from tests.flows.conftest import Home
from tests.flows.nights import PERMISSIVE, UPDATES, config_of, event, write_night, write_policy

#: The one update: its subject and its new value.
SUBJECT, TARGET = UPDATES[0][0][1], UPDATES[0][3][1]
EDITOR = {"name": "ft_m", "overrides": {"layer": 1, "learning_rate": 0.01, "num_steps": 60}}


class Stopped(Exception):
    """A night that was stopped where its model comes in."""


@pytest.fixture(autouse=True)
def bare_steps(monkeypatch: pytest.MonkeyPatch, without_page: None) -> None:
    """Steps as plain functions, and few facts asked of a model that knows none."""
    for flow in (nightly, revert):
        for name, step in vars(flow).items():
            if isinstance(step, Task):
                monkeypatch.setattr(flow, name, step.fn)
    monkeypatch.setattr("tasks.night.evaluate.FOR_A_NIGHT", 1)


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings over a home whose first night is received and judged, and nothing else."""
    folder = tmp_path_factory.mktemp("received")
    matrix.tiny("gpt2").save_pretrained(folder / "model")
    write_night(folder / "nights", "night-01", [json.dumps(event(1, 1, *UPDATES[0]))])
    config = {
        "home": str(folder / "home"),
        "policy": str(write_policy(folder / "permissive.yaml", PERMISSIVE, "permissive")),
        "model": {"name": str(folder / "model"), "form": "plain"},
        "editor": EDITOR,
        "source": {"kind": "recorded", "path": str(folder / "nights")},
        "probes": {"per_request": 1, "drawdown": 1, "held_texts": 1, "generations": 1},
        "threads": 1,
    }

    def stop(*_: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patched:
        for name, step in vars(nightly).items():
            if isinstance(step, Task):
                patched.setattr(nightly, name, step.fn)
        patched.setattr(nightly, "edit", stop)
        with pytest.raises(Stopped):
            nightly.nightly_refresh.fn(night="night-01", config=config)
    return config


def home_of(received: dict[str, Any], shape: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Home:
    """A copy of that home with a tiny model of the shape for its base; commands find it too."""
    matrix.tiny(shape).save_pretrained(folder / "model")
    shutil.copytree(received["home"], folder / "home")
    model = {"name": str(folder / "model"), "form": "plain"}
    monkeypatch.setenv("ERRATA_HOME", str(folder / "home"))
    monkeypatch.setenv("ERRATA_MODEL__NAME", model["name"])
    return Home(config_of({**received, "model": model}, folder / "home", **changes))


def run(home: Home) -> str:
    return str(nightly.nightly_refresh.fn(night="night-01", config=home.config).verdict)


def take_back(home: Home) -> str:
    return str(revert.revert_edits.fn("production", "it was wrong", config=home.config).verdict)


def pulled(folder: Path) -> str:
    """What `errata pull` says on standard error; nothing where it made the folder."""
    result = CliRunner().invoke(app, ["pull", "--out", str(folder)])
    assert (result.exit_code == 0) == folder.exists()
    return result.stderr


def said(folder: Path, prompt: str) -> str:
    """By transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("kind", matrix.NIGHTS)
def test_a_night_of_every_architecture_is_served_plainly_and_taken_back(
    kind: str, received: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_of(received, matrix.NIGHTS[kind], tmp_path, monkeypatch)
    assert run(home) == "promote"
    (asked,) = home.rows("SELECT prompt, target_new FROM edit_requests")
    assert asked["target_new"] == TARGET and SUBJECT in asked["prompt"]
    assert pulled(tmp_path / "pulled") == ""
    edited = at_checkpoint(configure(home.config), home.store, home.head().checkpoint)
    wanted = edited.generate([asked["prompt"]], 6)[0]
    edited.rollback(0)
    assert said(tmp_path / "pulled", asked["prompt"]).strip() == wanted.strip()
    assert wanted.strip().startswith(TARGET) and not said(tmp_path / "model", asked["prompt"]).strip().startswith(TARGET)
    assert audit(configure(home.config)).breaks == ()
    assert take_back(home) == "promote"
    assert pulled(tmp_path / "without") == ""
    base = weights(tmp_path / "model")
    assert all(torch.equal(value, base[name]) for name, value in weights(tmp_path / "without").items())
    assert audit(configure(home.config)).breaks == () and home.findings() == []


def test_slots_without_room_for_them_are_served_and_not_handed_out(
    received: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, which says why and what else there is. When they are taken back, the plain model is the base again."""
    numbers = tiny_editor("ledger").config.model_dump(exclude={"seed"})
    # Begun by another editor than this one, which a night that has edited nothing may be.
    home = home_of(received, "qwen2", tmp_path, monkeypatch, editor={"name": "ledger", "overrides": numbers})
    assert run(home) == "promote"
    assert audit(configure(home.config)).breaks == ()
    for command in ("pull", "export production"):
        result = CliRunner().invoke(app, [*command.split(), "--out", str(tmp_path / "out")])
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 1 and not (tmp_path / "out").exists()
        assert "slots only with biases, which 'qwen2' has not" in line and "errata ask" in line
    assert take_back(home) == "promote"
    assert pulled(tmp_path / "without") == ""
    base = weights(tmp_path / "model")
    assert all(torch.equal(value, base[name]) for name, value in weights(tmp_path / "without").items())
    assert audit(configure(home.config)).breaks == ()
