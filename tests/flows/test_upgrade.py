"""A home made by the release before exact products, rooms and the order of nights goes on working.

`before.tar.xz` holds one night of the ledger editor on a tiny model, written on 2026-11-27 by version 0.1.0 as it was at
commit 43a0731, with its model, without its preparation: that is made anew here, as on another machine.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from tasks.recheck.audit import audit
from tasks.settings import configure
from tasks.takeback.rollback import restore
from tasks.workspace import warehouse
from tests.flows.conftest import Home, revert_edits
from warehouse.lineages.edits import active_edits
from warehouse.nights.runs import runs

pytestmark = pytest.mark.usefixtures("bare_nights")
#: What production served when the home was put away.
SERVED = "f2aa3ee2e6d6505149f26143327f620914bf1eb5aebf7848bc16b15724b2ad88"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upgrade")
    with tarfile.open(Path(__file__).with_name("before.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder / "before"


@pytest.fixture
def before(unpacked: Path, tmp_path: Path) -> Home:
    import shutil

    shutil.copytree(unpacked, tmp_path / "before")
    folder = tmp_path / "before"
    config: dict[str, Any] = {
        "home": str(folder / "home"), "policy": str(folder / "permissive.yaml"), "model": {"name": str(folder / "model")},
        "editor": {"name": "ledger"}, "source": {"kind": "recorded", "path": str(folder / "nights")}, "threads": 1,
        "probes": {"per_request": 1, "drawdown": 8, "held_texts": 3, "generations": 2},
    }  # fmt: skip
    return Home(config)


def in_force(home: Home) -> dict[str, str]:
    with warehouse(configure(home.config)) as wh:
        return {edit.edit_id: request.subject for edit, request in active_edits(wh, "main")}


def test_it_serves_what_it_served_and_audits_with_a_word(before: Home) -> None:
    assert before.head().checkpoint.checkpoint_id == SERVED
    with warehouse(configure(before.config)) as wh:
        assert [(r.night, r.verdict) for r in runs(wh)] == [("night-01", "promote")]
    found = audit(configure(before.config))
    assert found.breaks == () and before.findings() == []
    # No word at all where this machine gives the bits of the one that wrote it, and loads the tokenizer as it did.
    assert all("written by a release" in word for word in found.notes)


def test_its_next_night_is_edited_reverted_and_rolled_back(before: Home) -> None:
    first = in_force(before)
    assert before.run("night-02").verdict == "promote"
    assert first.items() < in_force(before).items()
    assert audit(configure(before.config)).breaks == ()
    (new, *_) = set(in_force(before)) - set(first)
    assert revert_edits(new, "it was wrong", config=before.config).verdict == "promote"
    assert new not in in_force(before)
    restore(configure(before.config), SERVED, "as it was")
    assert in_force(before) == first
    assert audit(configure(before.config)).breaks == () and before.findings() == []
