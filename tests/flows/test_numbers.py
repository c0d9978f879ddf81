"""`--set`, and `errata prepare --auto`: what is given on the command line, and what reaches the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from editors import catalogue
from flows.cli import app
from flows.commands.given import numbers_given
from tasks.tuning.numbers import FoundNumbers
from tests.architectures import model_of
from warehouse.errors import UsageError


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["ft_m.layer=2"], {"ft_m": {"layer": 2}}),
        (["value_lr=0.5"], {"ft_m": {"value_lr": 0.5}, "rect": {"value_lr": 0.5}}),
        (["rect.host_overrides.layers=[1, 2]", "rect.host_overrides.value_lr=1e-3"],
         {"rect": {"host_overrides": {"layers": [1, 2], "value_lr": 1e-3}}}),
        (["ft_m.stop_loss=null", "ft_m.site=mlp"], {"ft_m": {"stop_loss": None, "site": "mlp"}}),
        (["layer=1", "ft_m.layer=2"], {"ft_m": {"layer": 2}, "rect": {"layer": 1}}),
    ],
)  # fmt: skip
def test_numbers_go_to_the_editors_that_they_name(items: list[str], expected: dict[str, Any]) -> None:
    assert numbers_given(items, ["ft_m", "rect"]) == expected


@pytest.mark.parametrize(
    ("item", "why"),
    [("layer", "expected"), ("=3", "expected"), ("ft_m.=3", "expected"), ("ft_m.layer={", "YAML or JSON"),
     ("memit.layers=[1]", "memit is not among the editors asked for")],
)  # fmt: skip
def test_what_cannot_be_read_is_named(item: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        numbers_given([item], ["ft_m", "rect"])


def test_the_command_hands_budget_and_held_numbers_to_the_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def find(_settings: object, _model: object, names: list[str], **more: Any) -> list[FoundNumbers]:
        seen.update(more, names=names)
        more["report"]("one trial")
        return [FoundNumbers("grace", "scaled", tmp_path / "grace.yaml", {"layer": 4}, None, (), True, "no facts")]

    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setenv("ERRATA_EDITOR__OVERRIDES", '{"value_steps": 9}')
    monkeypatch.setattr("tasks.tuning.numbers.find_numbers", find)
    asked = ["prepare", "--auto", "ledger", "grace", "--budget", "5", "--set", "grace.num_steps=7"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert seen["names"] == ["ledger", "grace"] and seen["minutes"] == 5
    assert seen["held"] == {"ledger": {"value_steps": 9}, "grace": {"num_steps": 7}}
    assert "one trial" in result.stderr and "scaled defaults, not tried (no facts)" in result.stdout
    assert CliRunner().invoke(app, [*asked, "--json"]).stdout.startswith("[")


def test_of_all_editors_those_that_the_architecture_does_not_take_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def find(_settings: object, _model: object, names: list[str], **_more: Any) -> list[FoundNumbers]:
        asked.extend(names)
        return []

    model_of("olmo2").save_pretrained(tmp_path / "model")
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ERRATA_MODEL__NAME", str(tmp_path / "model"))
    monkeypatch.setattr("tasks.tuning.numbers.find_numbers", find)
    result = CliRunner().invoke(app, ["prepare", "--auto", "all"])
    assert result.exit_code == 0, result.output
    assert "do not edit olmo2: calinet, minimal_patch, pmet, t_patcher" in result.stderr
    assert set(asked) == set(catalogue.names()) - {"calinet", "minimal_patch", "pmet", "t_patcher"}


def test_without_a_name_the_editor_of_the_settings_is_prepared_with_what_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def make(settings: Any, _report: object) -> dict[str, Any]:
        seen.append(settings.editor)
        return {"editor": settings.editor.name}

    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    monkeypatch.setenv("ERRATA_EDITOR__NAME", "grace")
    monkeypatch.setenv("ERRATA_EDITOR__OVERRIDES", '{"num_steps": 3}')
    monkeypatch.setattr("tasks.serving.prepare.make_preparation", make)
    result = CliRunner().invoke(app, ["prepare", "--set", "layer=2"])
    assert result.exit_code == 0, result.output
    assert CliRunner().invoke(app, ["prepare", "ft_m", "--set", "layer=1"]).exit_code == 0
    # The settings' own numbers go with whichever editor runs, as in a night.
    wanted = [("grace", {"num_steps": 3, "layer": 2}), ("ft_m", {"num_steps": 3, "layer": 1})]
    assert [(e.name, e.overrides) for e in seen] == wanted
    assert "grace needs no preparation" in result.stdout
