"""An editor's configuration is named once, in its brackets, and checked when the class is made."""

from __future__ import annotations

from typing import TypeVar

import pytest

from editors import catalogue
from editors.base import Editor, EditorConfig, Prepared
from editors.model import EditableModel, Patch
from warehouse.records import EditBatch


class OwnConfig(EditorConfig):
    number: int = 1


class OtherConfig(EditorConfig):
    pass


OwnT = TypeVar("OwnT", bound=OwnConfig)


class Shared(Editor[OwnT]):
    """What several editors share; its configuration is open."""

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> Patch:
        raise AssertionError("must not be reached")


def test_the_configuration_is_that_in_the_brackets() -> None:
    class Own(Editor[OwnConfig]):
        pass

    assert Own.config_class is OwnConfig


def test_an_open_class_hands_the_brackets_on() -> None:
    class Own(Shared[OwnConfig]):
        pass

    assert not hasattr(Shared, "config_class")
    assert Own.config_class is OwnConfig
    assert Own(OwnConfig(number=3)).config.number == 3


def test_a_class_without_brackets_has_what_it_inherits() -> None:
    class Own(Shared[OwnConfig]):
        pass

    class Under(Own):
        pass

    assert Under.config_class is OwnConfig


def test_an_editor_without_a_configuration_is_refused_where_it_is_defined() -> None:
    with pytest.raises(TypeError, match=r"Bare has no configuration \(None\): write Editor\[BareConfig\]"):

        class Bare(Editor):  # pyright: ignore[reportMissingTypeArgument]
            pass


def test_brackets_with_something_else_are_refused() -> None:
    with pytest.raises(TypeError, match="Odd has no configuration"):

        class Odd(Editor[int]):  # pyright: ignore[reportInvalidTypeArguments]
            pass


def test_two_configurations_that_differ_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Torn is an editor with OwnConfig, but its config_class is .*OtherConfig"):

        class Torn(Editor[OwnConfig]):
            config_class = OtherConfig


@pytest.mark.parametrize("name", sorted(catalogue.EDITORS))
def test_every_editor_of_ours_has_its_own_configuration(name: str) -> None:
    found = catalogue.editor_class(name)
    assert issubclass(found.config_class, EditorConfig)
    others = [n for n in catalogue.EDITORS if n != name]
    assert all(catalogue.editor_class(n).config_class is not found.config_class for n in others)
