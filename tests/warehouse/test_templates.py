"""A user's own templates over the embedded ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from warehouse.database.connection import Warehouse
from warehouse.errors import SourceError
from warehouse.reference.world import templates
from warehouse.world.facts import seed_world
from warehouse.world.templates import put_templates, templates_of

OWN = """
P1: {phrase: is next to, prompts: ["{s} is next to", "Next to {s} lies"]}
P36: {phrase: is ruled from, prompts: ["{s} is ruled from"]}
"""


@pytest.fixture
def store() -> Iterator[Warehouse]:
    with Warehouse.open(":memory:") as wh:
        seed_world(wh)
        yield wh


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "templates.yaml"
    path.write_text(OWN)
    return path


def test_a_warehouse_holds_the_embedded_templates(store: Warehouse) -> None:
    put_templates(store, None)
    assert templates_of(store) == templates()


def test_a_users_file_adds_a_property_and_rewords_another_whole(store: Warehouse, own: Path) -> None:
    assert put_templates(store, own) == len(templates()) + 1
    found = templates_of(store)
    assert (found["P1"].prompts, found["P36"].prompts) == (("{s} is next to", "Next to {s} lies"), ("{s} is ruled from",))


def test_without_the_file_the_embedded_wording_is_back(store: Warehouse, own: Path) -> None:
    put_templates(store, own)
    put_templates(store, None)
    assert templates_of(store) == templates()


def test_a_changed_file_is_read_again(store: Warehouse, own: Path) -> None:
    put_templates(store, own)
    own.write_text(OWN.replace("is ruled from", "has its seat in"))
    put_templates(store, own)
    assert templates_of(store)["P36"].prompts == ("{s} has its seat in",)


@pytest.mark.parametrize("text", ["P1: {phrase: x, prompts: [no subject]}", "- a list", "P1: {prompts: ['{s} is']}", "P1: ["])
def test_a_file_of_another_shape_is_refused_and_changes_nothing(store: Warehouse, own: Path, text: str) -> None:
    own.write_text(text)
    with pytest.raises(SourceError, match="no templates file"):
        put_templates(store, own)
    assert templates_of(store) == templates()


def test_a_missing_file_is_named(store: Warehouse, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.yaml: no such templates file"):
        put_templates(store, tmp_path / "none.yaml")
