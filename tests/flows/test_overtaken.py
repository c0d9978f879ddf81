"""A night whose lineage is moved by a second writer: it stops and keeps its evidence, or begins again on the new head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tasks.night.gate
from checks.gates.decide import load_policy, policy_digest
from tasks.recheck.audit import audit
from tasks.settings import configure
from tests.flows.conftest import Home, begun
from tests.flows.nights import PERMISSIVE, write_policy
from warehouse.digests import digest_of
from warehouse.errors import LineageMoved

pytestmark = pytest.mark.usefixtures("bare_nights")


@pytest.fixture
def rebasing(tmp_path: Path) -> str:
    path = write_policy(tmp_path / "rebase.yaml", PERMISSIVE, "permissive")
    path.write_text(path.read_text(encoding="utf-8") + "on_lineage_moved: rebase\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def second_writer(world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Another warehouse on the same store, with another editor, that promotes its night while ours is being gated."""
    other = begun(world, tmp_path / "other", store=str(tmp_path / "store"), editor={"name": "ft"})
    plain, ran = tasks.night.gate.gate.fn, []

    def overtaken(settings: Any, report: Any) -> Any:
        if not ran and settings.home != other.path:
            ran.append(other.run("night-02"))
        return plain(settings, report)

    monkeypatch.setattr("flows.nightly.gate", overtaken)
    return other


def first_writer(world: dict[str, Any], tmp_path: Path, **changes: Any) -> Home:
    return begun(world, tmp_path / "home", store=str(tmp_path / "store"), **changes)


def test_by_default_an_overtaken_night_stops_and_keeps_its_evidence(
    second_writer: Home, rebasing: str, world: dict[str, Any], tmp_path: Path
) -> None:
    home = first_writer(world, tmp_path)
    with pytest.raises(LineageMoved, match=r"kept on hold; run the night again.*on_lineage_moved: rebase"):
        home.run()
    theirs = second_writer.head().checkpoint.checkpoint_id
    assert home.head().checkpoint.checkpoint_id == theirs
    assert [row["verdict"] for row in home.rows("SELECT verdict FROM runs")] == ["unfinished"]
    (held,) = home.rows("SELECT checkpoint_id, verdict FROM checkpoints WHERE night = 'night-01'")
    assert held["verdict"] == "hold"
    (noted,) = home.rows("SELECT subject, reason, payload->>'found' AS found FROM audit WHERE kind = 'lineage'")
    assert (noted["subject"], noted["found"]) == (held["checkpoint_id"], theirs)
    edits = home.rows("SELECT DISTINCT status, checkpoint_id FROM edits")
    assert edits == [{"status": "rejected", "checkpoint_id": held["checkpoint_id"]}]
    assert home.findings() == []

    # Somebody looked at it and lets it go on: the same night, on what is served now.
    again = Home({**home.config, "policy": rebasing})
    assert again.run().verdict == "promote"
    assert again.head().checkpoint.parent == theirs
    assert again.findings() == []
    assert audit(configure(again.config)).breaks == ()


def test_an_overtaken_night_rebases_where_the_policy_says_so(
    second_writer: Home, rebasing: str, world: dict[str, Any], tmp_path: Path
) -> None:
    home = first_writer(world, tmp_path, policy=rebasing)
    line = home.run()
    head, theirs = home.head(), second_writer.rows("SELECT checkpoint_id FROM runs")[0]["checkpoint_id"]
    assert (line.verdict, head.checkpoint.checkpoint_id) == ("promote", line.checkpoint_id)
    assert (head.checkpoint.parent, len(head.checkpoint.patch_digests)) == (theirs, 2)
    active = home.rows("SELECT request_id, count(*) AS n FROM edits WHERE status = 'active' GROUP BY ALL")
    assert [row["n"] for row in active] == [1] * line.edited
    assert home.findings() == []
    assert audit(configure(home.config)).breaks == ()


def test_a_night_that_is_overtaken_again_and_again_ends(
    second_writer: Home, rebasing: str, world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.night.overtaken.MAX_REBASES", 0)
    with pytest.raises(LineageMoved, match=r"overtaken 1 times; find out who else moves 'production'"):
        first_writer(world, tmp_path, policy=rebasing).run()


def test_a_policy_that_does_not_speak_of_it_keeps_its_digest(rebasing: str, world: dict[str, Any]) -> None:
    plain = load_policy(world["policy"])
    document = plain.model_dump(mode="json")
    assert "on_lineage_moved" not in document and plain.on_lineage_moved == "stop"
    assert policy_digest(plain) == digest_of(document) != policy_digest(load_policy(rebasing))
