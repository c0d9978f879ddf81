"""Names of editors: who may join the catalogue from another package, and who is refused."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from editors import catalogue
from editors.direct.rome import Rome
from editors.errors import RefusedEditor


def join(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    """Let entry points of some other package stand beside ours."""
    found = EntryPoints(EntryPoint(name, value, "errata.editors") for name, value in points)
    monkeypatch.setattr(catalogue, "entry_points", lambda group: found.select(group=group))


def test_an_entry_point_with_a_name_of_its_own_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    join(monkeypatch, ("mine", "editors.direct.rome:Rome"))
    assert catalogue.editor_class("mine") is Rome
    assert set(catalogue.names()) == {"mine", *catalogue.EDITORS}


def test_an_entry_point_with_the_name_of_one_of_ours_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    join(monkeypatch, ("rome", "their_package:Rome"))
    for ask in (catalogue.names, lambda: catalogue.editor_class("memit")):
        with pytest.raises(RefusedEditor, match=r"'rome'.*their_package:Rome.*editors\.direct\.rome:Rome"):
            ask()


def test_two_entry_points_of_one_name_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    join(monkeypatch, ("mine", "one:A"), ("mine", "two:B"))
    with pytest.raises(RefusedEditor, match=r"'mine'.*two:B.*one:A"):
        catalogue.names()


@pytest.mark.parametrize("value", ["editors.direct.rome:RomeConfig", "editors.session:run_edits"])
def test_what_is_no_editor_is_refused_by_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    join(monkeypatch, ("mine", value))
    with pytest.raises(RefusedEditor, match=rf"'mine'.*{value}"):
        catalogue.editor_class("mine")
    with pytest.raises(RefusedEditor, match=value):
        catalogue.editor_class(value)
