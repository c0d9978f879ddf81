"""The warehouse of a task: opened once for all that is nested, and free for others afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.settings import Settings
from tasks.workspace import warehouse
from warehouse.errors import WarehouseError


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def test_a_warehouse_inside_another_is_that_one_and_stays_open(settings: Settings) -> None:
    with warehouse(settings) as outer:
        with warehouse(settings) as inner:
            assert inner is outer
        assert outer.scalar("SELECT 1") == 1
    with pytest.raises(WarehouseError, match="was closed"):
        outer.scalar("SELECT 1")


def test_after_an_error_inside_it_is_closed_and_opened_anew(settings: Settings) -> None:
    with pytest.raises(KeyError), warehouse(settings) as broken, warehouse(settings):
        raise KeyError
    with warehouse(settings) as again:
        assert again is not broken and again.scalar("SELECT 1") == 1


def test_another_home_has_its_own(settings: Settings, tmp_path: Path) -> None:
    with warehouse(settings) as mine, warehouse(Settings(home=tmp_path / "other")) as other:
        assert other is not mine and other.path != mine.path
