"""Settings: what wins over what, and how a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.settings import Settings, configure, origins
from warehouse.errors import UsageError


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, no ERRATA_* variable, and a Prefect home that is not touched."""
    import os

    for name in [name for name in os.environ if name.startswith("ERRATA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.chdir(tmp_path)


def test_the_file_wins_over_defaults() -> None:
    Path("errata.toml").write_text('[model]\nname = "some/model"\n', encoding="utf-8")
    assert configure().model.name == "some/model"


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("errata.toml").write_text('[model]\nname = "some/model"\n', encoding="utf-8")
    monkeypatch.setenv("ERRATA_MODEL__NAME", "another/model")
    assert configure().model.name == "another/model"


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_LINEAGE", "from-environment")
    monkeypatch.setenv("ERRATA_EDITOR__NAME", "grace")
    settings = configure(lineage="given", editor="ft")
    assert (settings.lineage, settings.editor.name) == ("given", "ft")


def test_naming_an_editor_keeps_its_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_EDITOR__BATCH_SIZE", "7")
    settings = configure(editor="ft")
    assert (settings.editor.name, settings.editor.batch_size) == ("ft", 7)


@pytest.mark.parametrize("values", [{"polcy": "nightly"}, {"model": {"nam": "x"}}, {"threads": "many"}])
def test_an_unknown_or_ill_typed_setting_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="settings"):
        configure(values)


def test_origins_say_where_each_setting_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("errata.toml").write_text('policy = "mine"\n[probes]\ndrawdown = 5\n', encoding="utf-8")
    monkeypatch.setenv("ERRATA_EDITOR__NAME", "grace")
    found = origins(configure())
    assert found["policy"] == found["probes.drawdown"] == "errata.toml"
    assert found["editor.name"] == "environment"
    assert found["probes.seed"] == found["lineage"] == "default"


def test_the_main_lineage_serves_production_and_others_a_channel_of_their_own() -> None:
    assert [Settings(lineage=name).channel_name for name in ("main", "b")] == ["production", "production-b"]


def test_telemetry_is_off_unless_the_user_turns_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    configure({"telemetry": True})
    assert "DO_NOT_TRACK" not in os.environ
    configure()
    assert os.environ["DO_NOT_TRACK"] == "1"
