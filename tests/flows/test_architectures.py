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
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from typer.testing import CliRunner

from editors.export.form import OF_BEFORE, Room
from editors.export.wide import wide_model
from editors.model import EditableModel
from flows import nightly
from flows.cli import app
from tasks.recheck.audit import audit
from tasks.serving import models
from tasks.serving.models import at_checkpoint
from tasks.settings import configure
from tests import matrix
from tests.architectures import steady_model, tiny_editor
from tests.flows.conftest import Home, bare, revert_edits
from tests.flows.nights import PERMISSIVE, UPDATES, config_of, event, write_night, write_policy

#: The one update: its subject and its new value.
SUBJECT, TARGET = UPDATES[0][0][1], UPDATES[0][3][1]
EDITOR = {"name": "ft_m", "overrides": {"layer": 1, "learning_rate": 0.01, "num_steps": 60}}


class Stopped(Exception):
    """A night that was stopped where its model comes in."""


@pytest.fixture(autouse=True)
def few_facts(monkeypatch: pytest.MonkeyPatch, bare_nights: None) -> None:
    """Few facts asked of a model that knows none."""
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
        bare(patched)
        patched.setattr(nightly, "edit", stop)
        with pytest.raises(Stopped):
            nightly.nightly_refresh(night="night-01", config=config)
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
    return str(home.run().verdict)


def take_back(home: Home) -> str:
    return str(revert_edits("production", "it was wrong", config=home.config).verdict)


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


def next_of(model: EditableModel, prompt: str) -> torch.Tensor:
    return torch.tensor(model.next_token_log_probs([prompt]))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("kind", matrix.NIGHTS)
def test_a_night_of_every_architecture_is_served_plainly_and_taken_back(
    kind: str, received: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_served_plainly_and_taken_back(home_of(received, matrix.NIGHTS[kind], tmp_path, monkeypatch), tmp_path)


def test_a_night_and_its_revert_on_each_device_that_is_here(
    device: torch.device, received: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_LOADED", {})
    monkeypatch.setattr(models, "device_of", lambda _wanted: device)
    home = home_of(received, "llama", tmp_path, monkeypatch)
    assert models.base_model(configure(home.config)).device.type == device.type
    is_served_plainly_and_taken_back(home, tmp_path)
    reports = home.rows("SELECT DISTINCT environment->>'device' AS device FROM reports")
    assert reports == [{"device": device.type}]


def is_served_plainly_and_taken_back(home: Home, tmp_path: Path) -> None:
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


def slots_of(received: dict[str, Any], shape: str, folder: Path, monkeypatch: pytest.MonkeyPatch, model: EditableModel) -> Home:
    """A home whose one night is made by the ledger, over another model of the shape."""
    numbers = tiny_editor("ledger").config.model_dump(exclude={"seed"}) | {"value_lr": 1.0, "clamp_norm": 200.0}
    # Begun by another editor than this one, which a night that has edited nothing may be.
    home = home_of(received, shape, folder, monkeypatch, editor={"name": "ledger", "overrides": numbers})
    model.save_pretrained(folder / "model")
    return home


@pytest.mark.parametrize(("shape", "dtype"), [("qwen2", "float32"), ("phi3", "bfloat16")])
def test_slots_of_a_gated_model_without_biases_are_served_plainly_and_taken_back(
    shape: str, dtype: str, received: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Edited in float32; served in that of its checkpoint.
    home = slots_of(received, shape, tmp_path, monkeypatch, steady_model(shape, getattr(torch, dtype)))
    assert run(home) == "promote"
    (asked,) = home.rows("SELECT prompt, target_new FROM edit_requests")
    assert pulled(tmp_path / "pulled") == ""
    # A tiny model of random numbers is moved by an edit and does not learn it.
    edited = at_checkpoint(configure(home.config), home.store, home.head().checkpoint)
    hooked, text = next_of(edited, asked["prompt"]), edited.generate([asked["prompt"]], 6)[0]
    edited.rollback(0)
    change = float((hooked - next_of(edited, asked["prompt"])).abs().max())
    plain = EditableModel.from_pretrained(str(tmp_path / "pulled"))
    assert float((next_of(plain, asked["prompt"]) - hooked).abs().max()) < 0.05 * change
    assert said(tmp_path / "pulled", asked["prompt"]).strip() == text.strip()
    base, out = weights(tmp_path / "model"), weights(tmp_path / "pulled")
    assert base.keys() == out.keys() and {str(t.dtype) for t in out.values()} == {f"torch.{dtype}"}
    report = home.head().report
    assert {s.slice for s in report.scores if s.metric == "served_agreement"} == {"edits", "bystanders"}
    assert report.environment["served_otherwise_edits"] == "0 of 1"
    assert report.environment["dtype"] == dtype, "the gate's rates are those of what is served"
    assert report.environment["served"].startswith(
        f"{dtype}; width 640 (the base's 96, 2 columns used, room for 271 slots more"
    )
    shown = json.loads(CliRunner().invoke(app, ["show", "--json"]).stdout)
    assert shown["served"] == report.environment["served"]
    # How much room there is, and the next width: in the report, the manifest, the card and here.
    room = report.environment["served"].partition("; ")[2]
    assert "then 1152)" in room and shown["engine"]["room"] == room == home.head().engine.room
    assert room in (tmp_path / "pulled" / "README.md").read_text(encoding="utf-8")
    assert f"- served: {dtype}; {room}" in (home.path / "reports/main/night-01/summary.md").read_text(encoding="utf-8")
    note = json.loads((tmp_path / "pulled" / "errata.json").read_text(encoding="utf-8"))["form"]
    facts = (type(edited.hf).__name__, dtype, 640, 256, {"model.layers.1.mlp": 2})
    assert tuple(note[key] for key in ("class", "dtype", "width", "reserve", "columns")) == facts
    built: list[int] = []

    def counted(*args: Any) -> tuple[PreTrainedModel, Room]:
        built.append(1)
        return wide_model(*args)

    with monkeypatch.context() as counting:
        counting.setattr("editors.export.plain.wide_model", counted)
        assert audit(configure(home.config)).breaks == () and home.findings() == []
    assert len(built) == 1
    assert take_back(home) == "promote"
    assert pulled(tmp_path / "without") == ""
    without = weights(tmp_path / "without")
    assert {n: t.shape for n, t in without.items()} == {n: t.shape for n, t in out.items()}, "engines keep a lineage's shapes"
    # Beside the base's own numbers there is nothing but zeros.
    assert all(t.count_nonzero() == base[name].count_nonzero() for name, t in without.items())
    assert said(tmp_path / "without", asked["prompt"]) == said(tmp_path / "model", asked["prompt"])
    assert audit(configure(home.config)).breaks == ()


def test_a_checkpoint_with_biases_of_a_release_before_is_audited_pulled_and_taken_back(
    received: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = slots_of(received, "llama", tmp_path, monkeypatch, steady_model("llama"))
    with monkeypatch.context() as before:
        before.setattr("tasks.serving.plain_folder.plain_form", lambda _settings, _model: OF_BEFORE)
        assert run(home) == "promote"
    (asked,) = home.rows("SELECT prompt FROM edit_requests")
    assert audit(configure(home.config)).breaks == () and home.findings() == []
    assert pulled(tmp_path / "pulled") == ""
    config, note = (json.loads((tmp_path / "pulled" / f).read_text(encoding="utf-8")) for f in ("config.json", "errata.json"))
    assert (config["mlp_bias"], config["intermediate_size"]) == (True, 96 + 2) and "form" not in note
    edited = at_checkpoint(configure(home.config), home.store, home.head().checkpoint)
    plain = EditableModel.from_pretrained(str(tmp_path / "pulled"))
    hooked = next_of(edited, asked["prompt"])
    edited.rollback(0)
    assert torch.allclose(next_of(plain, asked["prompt"]), hooked, atol=1e-4)
    assert not torch.allclose(next_of(edited, asked["prompt"]), hooked, atol=1e-2)
    assert take_back(home) == "promote"
    assert pulled(tmp_path / "without") == ""
    config = json.loads((tmp_path / "without" / "config.json").read_text(encoding="utf-8"))
    assert (config["mlp_bias"], config["intermediate_size"]) == (False, 640), "what comes next is in today's form"
    assert audit(configure(home.config)).breaks == ()


@pytest.mark.parametrize(
    # A model of random numbers has nothing that all its tokens share.
    ("shape", "why"),
    [("olmo2", "without a norm"), ("qwen2", "nothing is constant at model.layers.1.mlp")],
)
def test_slots_without_room_for_them_are_served_and_not_handed_out(
    shape: str, why: str, received: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, which says why and what else there is. When they are taken back, the plain model is the base again."""
    home = slots_of(received, shape, tmp_path, monkeypatch, matrix.tiny(shape))
    assert run(home) == "promote"
    assert "by Errata, with hooks" in home.head().report.environment["served"]
    assert audit(configure(home.config)).breaks == ()
    for command in ("pull", "export production"):
        result = CliRunner().invoke(app, [*command.split(), "--out", str(tmp_path / "out")])
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 1 and not (tmp_path / "out").exists()
        assert why in line and "errata ask" in line and "--anyway" in line
        result = CliRunner().invoke(app, [*command.split(), "--out", str(tmp_path / "anyway"), "--anyway"])
        assert result.exit_code == 0
        base, anyway = weights(tmp_path / "model"), weights(tmp_path / "anyway")
        assert all(torch.equal(value, base[name]) for name, value in anyway.items())
        shutil.rmtree(tmp_path / "anyway")
    assert take_back(home) == "promote"
    assert pulled(tmp_path / "without") == ""
    assert audit(configure(home.config)).breaks == ()
