"""Deployments for lineages and alarms as code, without a server; tests/deployments has a real one."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from tasks.alerts.alert import Alert
from tasks.deploying import deploy as deploying
from tasks.deploying.automations import automations
from tasks.deploying.deployments import DeployFailed, deployments_for, put, read_file
from tasks.recheck import audit as auditing
from tasks.recheck.audit import AuditFailed, AuditReport, audit_or_raise
from tasks.settings import configure
from warehouse.errors import UsageError
from warehouse.lineages.audit import Break

ROOT = Path(__file__).parents[2]
BLOCK = UUID(int=1)


def test_each_lineage_has_every_deployment_with_its_own_name_and_parameters() -> None:
    document = read_file(ROOT)
    made = deployments_for(document, ["main", "trial"], "gpu", cron="5 4 * * *", editor="memit")["deployments"]
    names = [entry["name"] for entry in document["deployments"]]
    assert [entry["name"] for entry in made] == names + [f"{name}-trial" for name in names]
    assert {entry["parameters"]["lineage"] for entry in made} == {"main", "trial"}
    assert {entry["work_pool"]["name"] for entry in made} == {"gpu"}
    crons = {entry["name"]: [s["cron"] for s in entry["schedules"]] for entry in made if entry["schedules"]}
    assert crons["nightly"] == crons["nightly-trial"] == ["5 4 * * *"] and crons["audit"] == crons["audit-trial"] != [
        "5 4 * * *"
    ]
    assert [entry["parameters"].get("editor") for entry in made if "nightly" in entry["name"]] == ["memit", "memit"]
    assert deployments_for(document, ["main"], "local")["deployments"] == document["deployments"]


def test_a_folder_that_is_not_the_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=str(tmp_path)):
        read_file(tmp_path)


def test_what_prefect_said_is_told_where_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = subprocess.CompletedProcess([], 3, "", "no such work pool")
    monkeypatch.setattr("tasks.deploying.deployments.subprocess.run", lambda *_, **__: refused)
    with pytest.raises(DeployFailed, match="no such work pool"):
        put({"deployments": []}, tmp_path)


def test_without_a_server_nothing_is_deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploying, "has_server", lambda: False)
    with pytest.raises(UsageError, match="PREFECT_API_URL"):
        deploying.deploy(configure(writes=False), ["main"], ROOT, pool="local")


@pytest.mark.parametrize(
    ("alerts", "secret", "words"),
    [({}, "", ["nobody will be told"]), ({"webhook": "http://x"}, "", ["ERRATA_ALERTS_SECRET is empty"]),
     ({"webhook": "http://x"}, "s", [])],
)  # fmt: skip
def test_who_deploys_hears_that_nobody_will_be_told(
    monkeypatch: pytest.MonkeyPatch, alerts: dict[str, Any], secret: str, words: list[str]
) -> None:
    monkeypatch.setenv("ERRATA_ALERTS_SECRET", secret)
    found = deploying._warnings(configure({"alerts": alerts}, writes=False))
    assert len(found) == len(words) and all(word in said for word, said in zip(words, found, strict=True))


# ---------------------------------------------------------------- in Prefect's template language


def rendered(name: str) -> Alert:
    """What the block gets of an automation, by Prefect's own renderer, where words hold quotes, braces and markup."""
    from prefect.server.events.actions import JinjaTemplateAction
    from prefect.server.utilities.user_templates import render_user_template_sync

    # Where the server's own filters are made known.
    JinjaTemplateAction._register_filters_if_needed()
    (body,) = [one.actions[0].body for one in automations(BLOCK, HOURS, DAY) if one.name == f"errata: {name}"]  # pyright: ignore[reportAttributeAccessIssue]
    state = SimpleNamespace(name="Failed", message='a "quote", {{ braces }} and </script>')
    run = SimpleNamespace(name="shy-owl", parameters={"lineage": "trial", "night": None}, state=state, expected_start_time=NOW)
    told = Alert(kind="rejected", lineage="main", night="night-01", reason='SR is "low" <b>').model_dump(mode="json")
    event = SimpleNamespace(payload={"alert": told, "lineage": "main", "night": "night-09"})
    return Alert.model_validate_json(render_user_template_sync(body, {"event": event, "flow_run": run}))


NOW, HOURS, DAY = datetime(2026, 11, 28, 3, tzinfo=UTC), timedelta(hours=4), timedelta(hours=26)


def test_an_event_of_a_night_is_delivered_as_it_is() -> None:
    found = rendered("a night does not serve")
    assert (found.kind, found.night, found.reason) == ("rejected", "night-01", 'SR is "low" <b>')


def test_a_broken_run_is_told_with_what_it_said() -> None:
    found = rendered("a run broke off")
    assert (found.kind, found.lineage, found.night) == ("broken", "trial", "")
    assert found.reason == 'run shy-owl is Failed: a "quote", {{ braces }} and </script>'


def test_a_late_night_is_told_with_its_hour() -> None:
    found = rendered("a night is late")
    assert found.kind == "late" and "due at 2026-11-28 03:00:00+00:00, has not ended 4 h later" in found.reason


def test_a_night_that_never_came_is_told_by_the_last_one() -> None:
    found = rendered("no night came")
    assert (found.kind, found.lineage, found.night, found.reason) == (
        "missing",
        "main",
        "night-09",
        "no night has ended for 26 h",
    )


# ---------------------------------------------------------------- the weekly audit


def test_an_audit_that_finds_a_break_fails_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks = tuple(Break(what=f"object {i}", found="damaged") for i in range(7))
    report = AuditReport(entries=1, checkpoints=1, objects=7, signatures=0, evaluated=True, breaks=breaks)
    monkeypatch.setattr(auditing, "audit", lambda *_, **__: report)
    with pytest.raises(AuditFailed, match=r"7 breaks: object 0: damaged.*and 2 more"):
        audit_or_raise(configure(writes=False), deep=True)
    sound = report.model_copy(update={"breaks": ()})
    monkeypatch.setattr(auditing, "audit", lambda *_, **__: sound)
    assert audit_or_raise(configure(writes=False), deep=True) is sound
