"""What `errata doctor` finds, what it advises, and the code that a monitor reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks.doctor import machine
from tasks.doctor.examine import CHECKS, examine
from tasks.doctor.health import Health
from tasks.doctor.machine import check_clock, check_disk, check_memory, check_model
from tasks.doctor.nights import check_keys, check_nights
from tasks.doctor.services import check_servers, check_source, check_the_store
from tasks.doctor.versions import BREAKAGES, check_versions, installed
from tasks.settings import Settings, configure
from warehouse.checkpoints.signing import generate_key
from warehouse.database.connection import Warehouse
from warehouse.lineages.serving import ServingCheck, save_check
from warehouse.nights.runs import begin_run, save_run
from warehouse.records import NightRun

DTYPES = ("float32", "bfloat16", "auto")
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def settings_of(home: Path, **config: Any) -> Settings:
    return configure({"home": str(home), **config})


def levels(lines: list[Health]) -> list[str]:
    return [line.level for line in lines]


# ---------------------------------------------------------------- versions


def test_the_versions_that_are_installed_break_nothing() -> None:
    assert levels(check_versions(Settings())) == ["ok"]


@pytest.mark.parametrize(
    ("package", "number", "level"),
    [("pandas", "3.1.0", "fault"), ("fastapi", "0.151.0", "fault"), ("SQLAlchemy", "2.1.0b1", "fault"),
     ("prefect", "3.9.1", "fault"), ("pyOpenSSL", None, "fault"), ("torch", "2.14.0+cpu", "warning"),
     ("prefect", "3.8.7", "fault"), ("duckdb", "1.4.2", "fault")],
)  # fmt: skip
def test_a_version_that_breaks_is_named_with_what_to_install(package: str, number: str | None, level: str) -> None:
    (line,) = check_versions(Settings(), lambda name: number if name == package else installed(name))
    why = next(b.why for b in BREAKAGES if b.package == package)
    assert line.level == level and why in line.found and f"pip install '{package}>=" in line.to_do


# ---------------------------------------------------------------- machine


def test_a_model_that_does_not_fit_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path)
    need = machine.model_bytes(settings)
    monkeypatch.setattr(machine, "base_model", lambda _: pytest.fail("loaded"))
    for free, level in ((need - 1, "fault"), (need + 1, "warning"), (3 * need, "ok")):
        monkeypatch.setattr(machine, "free_memory", lambda free=free: free)
        assert check_memory(settings).level == level
        if level == "fault":
            assert check_model(settings).level == "fault"


def test_a_model_stored_in_half_takes_twice_its_files_in_single(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    sizes = {d: machine.model_bytes(configure({"model": {"name": str(tmp_path), "dtype": d}}, writes=False)) for d in DTYPES}
    assert sizes == {"float32": 2000, "bfloat16": 1000, "auto": 1000}


def test_the_model_that_is_configured_loads_and_answers(tmp_path: Path) -> None:
    assert check_model(settings_of(tmp_path)).level == "ok"


def test_a_full_disk_is_a_fault_and_a_small_one_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    for free, level in ((1 << 20, "fault"), (300 << 20, "warning"), (10 << 30, "ok")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _, free=free: usage(0, 0, free))
        assert check_disk(settings_of(tmp_path)).level == level


def test_a_clock_that_is_wrong_is_found_by_the_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_clock(settings_of(tmp_path)).level == "ok"
    monkeypatch.setattr(machine, "time_of", lambda _: datetime.now(UTC) - timedelta(minutes=5))
    line = check_clock(settings_of(tmp_path))
    assert line.level == "fault" and "300 s behind" in line.found


def test_the_clock_of_a_bucket_is_that_of_its_answers(s3_bucket: str, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, store=f"s3://{s3_bucket}/x")
    assert check_clock(settings).level == "ok"
    assert check_the_store(settings).level == "ok"


# ---------------------------------------------------------------- store, source, servers


def test_a_bucket_that_is_not_there_is_a_fault_with_its_reason(s3_bucket: str, tmp_path: Path) -> None:
    lines = list(examine(settings_of(tmp_path, store="s3://elsewhere"), leave_out=tuple(set(CHECKS) - {"store"})))
    assert levels(lines) == ["fault"] and "elsewhere" in lines[0].found and lines[0].to_do


def test_the_live_source_needs_a_contact(tmp_path: Path) -> None:
    line = check_source(settings_of(tmp_path, source={"kind": "wikidata"}))
    assert line.level == "fault" and "wikidata.contact" in line.found


def test_a_live_source_that_is_away_is_a_warning(tmp_path: Path) -> None:
    live = {"contact": "errata@example.org", "hosts": ["127.0.0.1:9"], "entity_url": "http://127.0.0.1:9"}
    line = check_source(settings_of(tmp_path, source={"kind": "wikidata"}, wikidata=live))
    assert line.level == "warning" and "127.0.0.1:9" in line.found


def test_what_servers_said_last_is_told(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, serving={"urls": ["http://a:8000", "http://b:8000", "http://c:8000"]})
    with Warehouse.open(settings.warehouse_path) as wh:
        for host, verdict in (("a", "agrees"), ("b", "differs")):
            save_check(
                wh,
                ServingCheck(
                    lineage="main", url=f"http://{host}:8000/v1", model="m", checkpoint_id="c", asked_at=NOW,
                    verdict=verdict, sentence=f"it {verdict}",  # pyright: ignore[reportArgumentType]
                ),
            )  # fmt: skip
    lines = check_servers(settings)
    assert levels(lines) == ["ok", "fault", "warning"]
    assert "it differs" in lines[1].found and lines[2].to_do.startswith("errata serving check http://c:8000")


# ---------------------------------------------------------------- keys and nights


def test_a_key_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    private = tmp_path / "key.pem"
    generate_key(private, tmp_path / "key.pub")
    settings = settings_of(tmp_path / "home", signing={"private_key": str(private)})
    assert check_keys(settings).level == "ok"
    private.chmod(0o644)
    assert check_keys(settings).level == "warning"


def test_no_key_is_a_fault_where_the_policy_wants_signatures(tmp_path: Path) -> None:
    policy = tmp_path / "p.yaml"
    rule = "{metric: SR, op: '>=', threshold: 0.9, on_fail: reject, judge: point, min_n: 1}"
    for allowed, level in (("true", "ok"), ("false", "fault")):
        policy.write_text(f"name: p\nversion: 1\nallow_unsigned: {allowed}\nrules:\n  - {rule}\n")
        assert check_keys(settings_of(tmp_path / "home", policy=str(policy))).level == level


@pytest.mark.parametrize(
    ("hours", "lineage", "ended", "level"),
    [(3, "main", True, "ok"), (30, "main", True, "fault"), (30, "trial", True, "warning"), (1, "main", False, "ok"),
     (9, "main", False, "fault")],
)  # fmt: skip
def test_a_lineage_without_a_night_for_too_long_is_found(
    tmp_path: Path, hours: int, lineage: str, ended: bool, level: str
) -> None:
    settings = settings_of(tmp_path)
    with Warehouse.open(settings.warehouse_path) as wh:
        for name in {"main", lineage}:
            then = NOW - timedelta(hours=hours if name == lineage else 1)
            begin_run(wh, "night-01", name, run_id=name, editor="memit", started_at=then)
            if ended or name != lineage:
                line = NightRun(night="night-01", lineage=name, editor="memit", records=1, accepted=1, edited=1, scores={},
                                verdict="promote", checkpoint_id=None, seconds=1.0)  # fmt: skip
                save_run(wh, line, finished_at=then)
    found = {line.found.split()[1].rstrip(":"): line for line in check_nights(settings, NOW)}
    assert found[lineage].level == level
    assert bool(found[lineage].to_do) == (level != "ok")


# ---------------------------------------------------------------- the command


def test_a_check_that_breaks_is_a_fault_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tasks.doctor.examine.CHECKS", {"one": lambda _: 1 / 0, "two": lambda _: Health(check="two", level="ok", found="x")}
    )
    lines = list(examine(settings_of(tmp_path)))
    assert levels(lines) == ["fault", "ok"] and "ZeroDivisionError" in lines[0].found


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warning", 1), ("fault", 2)])
def test_the_exit_code_is_what_a_monitor_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: Any, code: int) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    checks = {
        "first": lambda _: Health(check="first", level="ok", found="[red]"),
        "second": lambda _: Health(check="second", level=level, found="y"),
    }
    monkeypatch.setattr("tasks.doctor.examine.CHECKS", checks)
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == code
    assert json.loads(done.stdout)["level"] == level
    said = CliRunner().invoke(app, ["doctor"])
    assert said.exit_code == code and "[red]" in said.stdout and "2 checks" in said.stdout


def test_a_check_can_be_left_out_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path))
    everything = [word for name in CHECKS if name != "versions" for word in ("--without", name)]
    assert [c["check"] for c in json.loads(CliRunner().invoke(app, ["doctor", *everything, "--json"]).stdout)["checks"]] == [
        "versions"
    ]
    assert CliRunner().invoke(app, ["doctor", "--without", "modle"]).exit_code == 3
