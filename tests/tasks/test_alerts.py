"""Who is told of a night, what, and how it is signed; without a Prefect server here, with one in tests/deployments."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tasks.alerts import tell as telling
from tasks.alerts.alert import Alert, link_of, of_decision
from tasks.alerts.block import ErrataAlert
from tasks.alerts.delivery import Recipients, deliver, recipients_of
from tasks.settings import configure
from tests.checks.support import report, score
from tests.receiver import Receiver, documented_check, receiving
from warehouse.records import Checkpoint, GatePolicy, GateRule, Manifest

SECRET = "a secret of the tests"
ALERT = Alert(
    kind="rejected", lineage="main", night="night-01", verdict="reject", reason="SR is 0.5 – below 0.9", link="http://x/"
)
INSTANT: Any = lambda _: None  # noqa: E731


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(SECRET) as found:
        yield found


def manifest(verdict: str = "reject") -> Manifest:
    from checks.gates.decide import decide

    rules = (
        GateRule(metric="SR", op=">=", threshold=0.9, on_fail="reject" if verdict == "reject" else "hold", judge="point"),
        GateRule(metric="GR", op=">=", threshold=0.9, on_fail="warn", judge="point"),
        GateRule(metric="DD", slice="known", op="<=", threshold=0.1, on_fail="reject" if verdict == "reject" else "hold"),
    )
    if verdict == "promote":
        rules = (GateRule(metric="SR", op=">=", threshold=0.4, judge="point"), rules[1])
    policy, made = GatePolicy(name="p", version=1, rules=rules), report(score("SR", 0.5), score("GR", 0.2))
    checkpoint = Checkpoint(
        checkpoint_id="c" * 64, parent=None, base_model="m", base_revision="r", base_digest="b", patch_digests=(),
        created_at=datetime(2026, 11, 28, tzinfo=UTC),
    )  # fmt: skip
    decision = decide(policy, made, datetime(2026, 11, 28, tzinfo=UTC))
    assert decision.verdict == verdict
    return Manifest(checkpoint=checkpoint, lineage="main", night="night-01", editor="e", verdict=decision.verdict, report=made,
                    decision=decision)  # fmt: skip


# ---------------------------------------------------------------- what is told


@pytest.mark.parametrize(("verdict", "kind"), [("reject", "rejected"), ("hold", "held")])
def test_an_alert_names_the_rules_that_stopped_the_night(verdict: str, kind: str) -> None:
    settings = configure({"alerts": {"link": "http://e/{lineage}/{night}?{other}"}}, writes=False)
    alert = of_decision(settings, manifest(verdict))
    assert alert is not None and alert.kind == kind
    assert [(r.metric, r.slice, r.value) for r in alert.failed_rules] == [("SR", "", 0.5), ("DD", "known", None)]
    assert alert.link == "http://e/main/night-01?{other}" and "0.9" in alert.reason and alert.checkpoint == "c" * 64


def test_a_promoted_night_alarms_nobody() -> None:
    assert of_decision(configure(writes=False), manifest("promote")) is None


def test_a_name_cannot_leave_its_place_in_a_link() -> None:
    settings = configure({"lineage": "a/b?c", "alerts": {"link": "http://e/{lineage}"}}, writes=False)
    assert link_of(settings, "night-01") == "http://e/a%2Fb%3Fc"


def test_the_same_event_has_the_same_id_whenever_it_is_told() -> None:
    again = ALERT.model_copy(update={"at": datetime(2030, 1, 1, tzinfo=UTC)})
    assert Alert(**{**again.model_dump(), "alert_id": ""}).alert_id == ALERT.alert_id
    assert Alert(**{**ALERT.model_dump(), "alert_id": "", "night": "night-02"}).alert_id != ALERT.alert_id


# ---------------------------------------------------------------- how it is delivered


def test_a_receiver_can_check_who_sent_what(receiver: Receiver) -> None:
    assert deliver(ALERT, Recipients(receiver.url, SECRET)) == []
    assert receiver.is_signed == [True]
    assert Alert(**receiver.bodies[0]) == ALERT
    (header, body), check = receiver.raw[0], documented_check()
    assert not check(SECRET, header, body + b" ") and not check("another", header, body) and not check(SECRET, "", body)
    later = header.replace(header[2:12], str(int(time.time()) + 1))
    assert not check(SECRET, later, body), "the time is signed too"


def test_a_signature_is_not_good_for_ever(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    then = time.time() - 3600
    monkeypatch.setattr("tasks.alerts.delivery.time.time", lambda: then)
    deliver(ALERT, Recipients(receiver.url, SECRET))
    monkeypatch.undo()
    header, body = receiver.raw[0]
    assert not documented_check()(SECRET, header, body)
    assert documented_check()(SECRET, header, body, 7200)


@pytest.mark.parametrize(("answers", "times", "is_told"), [([503, 429], 3, True), ([500] * 5, 3, False), ([400], 1, False)])
def test_a_busy_receiver_is_asked_again_and_one_that_refuses_is_not(
    receiver: Receiver, answers: list[int], times: int, is_told: bool
) -> None:
    receiver.answers[:] = answers
    problems = deliver(ALERT, Recipients(receiver.url, SECRET, retries=2), INSTANT)
    assert len(receiver.bodies) == times and (problems == []) is is_told
    assert "in-the-address" not in " ".join(problems)


def test_nothing_goes_to_a_webhook_unsigned(receiver: Receiver) -> None:
    (problem,) = deliver(ALERT, Recipients(receiver.url, ""))
    assert receiver.bodies == [] and "alerts.secret_variable" in problem


def test_one_who_is_away_keeps_no_other_from_being_told(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr("apprise.Apprise.notify", lambda self, body, title: told.append((title, body)) or True)
    addresses = ["nonsense://x:password@y", "mailtos://user:password@example.org"]
    problems = deliver(ALERT, Recipients("http://127.0.0.1:9", SECRET, addresses, timeout_s=1, retries=0))
    assert len(problems) == 2 and "password" not in " ".join(problems)
    assert told == [("Errata main: night-01 was rejected and does not serve", "SR is 0.5 – below 0.9\nhttp://x/")]


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", SECRET)
    alerts = {"addresses": ["mailtos://user:password@h"], "secret_variable": "OTHER", "webhook": "http://w"}
    settings = configure({"alerts": alerts}, writes=False)
    found = recipients_of(settings.alerts)
    assert (found.secret, list(found.addresses)) == (SECRET, ["mailtos://user:password@h"])
    assert "password" not in repr(settings) + repr(found) + str(settings.alerts.addresses) and SECRET not in repr(found)


def test_the_block_delivers_as_a_night_does(receiver: Receiver) -> None:
    from prefect.blocks.abstract import NotificationError

    block = ErrataAlert(webhook=receiver.url, secret=SECRET)  # pyright: ignore[reportArgumentType]
    asyncio.run(block.notify(ALERT.model_dump_json(), "title"))
    assert receiver.is_signed == [True] and receiver.bodies[0]["alert_id"] == ALERT.alert_id
    receiver.answers.append(403)
    with pytest.raises(NotificationError) as failed:
        asyncio.run(block.notify(ALERT.model_dump_json(), "title"))
    assert "HTTP 403" in failed.value.log


# ---------------------------------------------------------------- who tells


def test_without_a_server_the_night_tells_itself(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telling, "has_server", lambda: False)
    monkeypatch.setenv("ERRATA_ALERTS_SECRET", SECRET)
    settings = configure({"alerts": {"webhook": receiver.url}}, writes=False)
    telling.tell_of_night(settings, "night-01", manifest("promote"))
    telling.tell_of_night(settings, "night-01", None)
    assert receiver.bodies == []
    telling.tell_of_night(settings, "night-01", manifest())
    assert [b["kind"] for b in receiver.bodies] == ["rejected"] and receiver.is_signed == [True]
    receiver.answers.append(400)
    with caplog.at_level(logging.WARNING):
        telling.tell_of_night(settings, "night-01", manifest())
    assert "HTTP 400" in caplog.text, "nobody could be told, and the night goes on"


def test_nobody_is_told_where_no_recipient_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "has_server", lambda: False)
    monkeypatch.setattr(telling, "deliver", lambda *_: pytest.fail("delivered"))
    telling.tell_of_night(configure(writes=False), "night-01", manifest())


def test_the_payload_is_plain_json() -> None:
    assert json.loads(ALERT.model_dump_json())["reason"] == "SR is 0.5 – below 0.9"
