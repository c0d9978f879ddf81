"""The audit of a real night: sound as it is, and every kind of tampering found."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from checks.gates.decide import decide
from editors.patches.weight import LowRank, WeightPatch
from tasks.night.gate import gate
from tasks.recheck.answers import _differing
from tasks.recheck.audit import AuditReport, audit
from tasks.settings import configure
from tasks.trail import export_warehouse
from tasks.workspace import warehouse
from tests.flows.conftest import Home, begun
from tests.flows.nights import config_of
from tests.machines import OTHERS, audits
from warehouse.digests import digest_of
from warehouse.errors import NotFound
from warehouse.lineages.reports import load_report
from warehouse.records import EvaluationReport, GateDecision, GatePolicy, Prediction


def audited(home: Home) -> AuditReport:
    return audit(configure(home.config))


def files_of(home: Home) -> list[Path]:
    """Every file of the store that anything depends on."""
    root = home.path / "store"
    return sorted(p for p in root.rglob("*") if p.is_file() and not p.relative_to(root).parts[0].startswith("."))


def test_an_undisturbed_night_holds(copied: Home) -> None:
    found = audited(copied)
    assert found.breaks == ()
    assert found.checkpoints == 1 and found.objects > 5


def reworded(decide: Callable[..., GateDecision], **changed: Any) -> Callable[..., GateDecision]:
    """A release that tells every rule in other words; `changed`: and finds something else."""

    def told(policy: GatePolicy, report: EvaluationReport, now: datetime) -> GateDecision:
        made = decide(policy, report, now)
        results = tuple(r.model_copy(update={"explanation": "In other words.", **changed}) for r in made.results)
        return made.model_copy(update={"results": results, "decision_id": digest_of("another")})

    return told


def test_a_release_that_tells_a_rule_in_other_words_audits_what_was_decided_before(
    copied: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.recheck.audit.decide", reworded(decide))
    assert audited(copied).breaks == ()
    monkeypatch.setattr("tasks.recheck.audit.decide", reworded(decide, passed=False))
    assert [b.found for b in audited(copied).breaks] == ["its policy decides otherwise on its report"]


def test_a_decision_stands_though_a_later_release_tells_it_in_other_words(
    copied: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configure(copied.config)
    with warehouse(settings) as wh:
        (row,) = wh.rows("SELECT report_id, decision_id FROM decisions")
        report = load_report(wh, row["report_id"])
    monkeypatch.setattr("tasks.night.gate.decide", reworded(decide))
    assert gate.fn(settings, report).decision_id == row["decision_id"]


def test_the_trail_has_what_happened_in_order(copied: Home) -> None:
    kinds = [row["kind"] for row in copied.rows("SELECT kind FROM audit ORDER BY seq")]
    assert [k for k in kinds if k != "verdicts"] == ["policy", "decision", "edits", "promotion"]


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))


def cut(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    at = chance.randrange(len(data))
    path.write_bytes(data[:at] + data[at + 1 :])


def insert(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    at = chance.randrange(len(data) + 1)
    path.write_bytes(data[:at] + bytes([chance.randrange(256)]) + data[at:])


def delete(path: Path, _chance: random.Random) -> None:
    path.unlink()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("damage", [flip, cut, insert, delete])
def test_a_damaged_object_of_the_store_is_found(copied: Home, damage: Callable[[Path, random.Random], None], seed: int) -> None:
    chance = random.Random(f"{damage.__name__}-{seed}")
    path = chance.choice(files_of(copied))
    damage(path, chance)
    assert audited(copied).breaks, path


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE verdicts SET sentence = sentence || ' ' WHERE record_id = (SELECT min(record_id) FROM verdicts)",
        "DELETE FROM edits WHERE edit_id = (SELECT min(edit_id) FROM edits)",
        "UPDATE edit_requests SET other_relations = ['P1'] WHERE request_id = (SELECT min(request_id) FROM edit_requests)",
        "UPDATE edits SET patch_digest = 'x'",
        "UPDATE scores SET value = value + 1e-9 WHERE metric = 'SR'",
        "UPDATE decisions SET verdict = 'reject'",
        "UPDATE audit SET reason = 'x' WHERE seq = 1",
        "DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)",
    ],
)
def test_a_changed_row_of_the_warehouse_is_found(copied: Home, sql: str) -> None:
    from warehouse.database.connection import Warehouse

    with Warehouse.open(copied.path / "warehouse.duckdb") as wh:
        assert wh.execute(sql) > 0
    assert audited(copied).breaks


@pytest.mark.parametrize("damage", [flip, cut, insert, delete])
def test_a_damaged_export_is_found(copied: Home, tmp_path: Path, damage: Callable[[Path, random.Random], None]) -> None:
    settings = configure(copied.config)
    export_warehouse(settings, tmp_path / "export")
    assert audit(settings, exported=tmp_path / "export").breaks == ()
    chance = random.Random(damage.__name__)
    full = [p for p in sorted((tmp_path / "export").iterdir()) if p.stat().st_size]
    damage(chance.choice(full), chance)
    assert audit(settings, exported=tmp_path / "export").breaks


def test_an_object_that_nobody_promoted_is_found(copied: Home) -> None:
    copied.store.create("manifests/" + "a" * 64 + ".json", b"{}")
    assert [b.what for b in audited(copied).breaks] == ["manifests/" + "a" * 64 + ".json"]


# ------------------------------------------------------------ other machines, other releases, nothing at all


@pytest.mark.parametrize("setting", OTHERS)
def test_another_machine_finds_nothing_but_what_was_tampered_with(copied: Home, setting: str, tmp_path: Path) -> None:
    bad = {**copied.config, "home": str(tmp_path / "bad")}
    shutil.copytree(copied.path, tmp_path / "bad")
    flip(min((tmp_path / "bad" / "store").rglob("model.safetensors")), random.Random(1))
    sound, found = audits(setting, [copied.config, bad], tmp_path)
    assert sound == [] and found


def test_a_home_of_before_holds_with_a_word(
    world: dict[str, Any], bare_nights: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint has the last bits of the machine and of the release that wrote it."""
    home = begun(world, tmp_path / "home")
    with monkeypatch.context() as before:
        before.setattr(LowRank, "dense", lambda update: (update.left @ update.right.t()) * (1 + 2.0**-22))
        before.setattr(WeightPatch.__init__, "__defaults__", (None, ""))
        assert home.run().verdict == "promote"
    found = audited(home)
    assert found.breaks == ()
    (word,) = found.notes
    assert "model.safetensors: written by a release whose last bits depended on the machine" in word


def test_a_home_of_before_with_other_weights_does_not_hold(
    world: dict[str, Any], bare_nights: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = begun(world, tmp_path / "home")
    with monkeypatch.context() as before:
        before.setattr(LowRank, "dense", lambda update: (update.left @ update.right.t()) * 1.01)
        before.setattr(WeightPatch.__init__, "__defaults__", (None, ""))
        assert home.run().verdict == "promote"
    found = audited(home)
    assert [b.found for b in found.breaks] == ["the base and the patches do not give this file"] and not found.notes


def test_todays_weights_are_held_to_the_bit(
    world: dict[str, Any], bare_nights: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = begun(world, tmp_path / "home")
    with monkeypatch.context() as before:
        before.setattr(LowRank, "dense", lambda update: (update.left @ update.right.t()) * (1 + 2.0**-22))
        assert home.run().verdict == "promote"
    assert [b.found for b in audited(home).breaks] == ["the base and the patches do not give this file"]


def test_a_home_that_is_not_there_is_not_sound_and_gets_no_warehouse(copied: Home, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nothing to audit: no warehouse at .*mistyped"):
        audit(configure({**copied.config, "home": str(tmp_path / "mistyped")}))
    assert not (tmp_path / "mistyped" / "warehouse.duckdb").exists()


def test_a_home_without_a_trail_is_not_sound(world: dict[str, Any], tmp_path: Path) -> None:
    settings = configure(config_of(world, tmp_path / "home"))
    with warehouse(settings):
        pass
    with pytest.raises(NotFound, match=r"nothing to audit: the trail in .* is empty"):
        audit(settings)


def test_an_emptied_trail_over_a_full_store_is_a_break(copied: Home) -> None:
    with warehouse(configure(copied.config)) as wh:
        wh.execute("DELETE FROM audit")
    assert audited(copied).breaks


def test_a_lineage_that_nobody_has_is_named(copied: Home) -> None:
    with pytest.raises(NotFound, match="lineage 'mian': the trail knows main"):
        audit(configure({**copied.config, "lineage": "mian"}))


def test_the_deep_audit_asks_again_and_finds_another_answer(copied: Home) -> None:
    assert audit(configure(copied.config), deep=True).breaks == ()
    with warehouse(configure(copied.config)) as wh:
        assert wh.execute("UPDATE predictions SET log_prob = log_prob - 0.1") > 0
    assert any("answer to probe" in b.what for b in audit(configure(copied.config), deep=True).breaks)


@pytest.mark.parametrize(("shift", "breaks"), [(0.0, 0), (5e-4, 0), (2e-3, 1)])
def test_a_tie_between_two_machines_is_no_other_model(shift: float, breaks: int) -> None:
    was = Prediction(model_digest="m", probe_id="p", text="", log_prob=-1.0, exact=True, token_accuracy=1.0)
    now = was.model_copy(update={"exact": False, "log_prob": -1.0 + shift})
    assert len(list(_differing({"p": was}, {"p": now}))) == breaks
