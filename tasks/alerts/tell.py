"""Tell of a night: to a Prefect server as an event, whose automations deliver; where none runs, to the recipients directly.

A night never fails because nobody could be told: that is a warning in its log, and its verdict stands in the warehouse.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL

from tasks.alerts.alert import Alert, link_of, of_decision
from tasks.alerts.delivery import deliver, recipients_of
from tasks.night.course import under_way
from tasks.settings import Settings
from warehouse.records import Manifest

log = logging.getLogger(__name__)
#: Every event of a night begins so; `ended` is each night's last one, whatever its verdict.
NIGHT_EVENT = "errata.night."
SERVING_EVENT = "errata.serving.mismatch"
ENDED = {"promote": "promoted", "reject": "rejected", "hold": "held"}


def has_server() -> bool:
    """Is there a Prefect server that outlives this process?"""
    return bool(PREFECT_API_URL.value())


def tell_of_night(settings: Settings, night: str, manifest: Manifest | None) -> None:
    """Before a night's line is written, so that a night that is killed here tells twice and never not at all.

    Args:
        manifest: None where nothing was left to edit.
    """
    alert = of_decision(settings, manifest) if manifest else None
    tell(settings, NIGHT_EVENT + (ENDED[manifest.verdict] if manifest else "unchanged"), alert, {"night": night})


def tell(settings: Settings, event: str, alert: Alert | None, facts: Mapping[str, Any]) -> None:
    """An event of the lineage with `facts` and the alert, or where no server would hear it the alert alone."""
    if has_server():
        # Outside a flow run nobody waits until the event has been sent.
        if FlowRunContext.get() is not None:
            told = {"alert": alert.model_dump(mode="json")} if alert else {}
            resource = {"prefect.resource.id": f"errata.lineage.{settings.lineage}"}
            emit_event(event, resource, payload={"lineage": settings.lineage, **facts, **told})
    elif alert is not None:
        _deliver(settings, alert)


def tell_broken(flow: Any, flow_run: Any, state: Any) -> None:
    """A hook of flows: a night that broke off. With a server an automation sees it by the run's state."""
    night = under_way()
    if has_server() or night is None:
        return
    settings = night.settings
    alert = Alert(
        kind="broken",
        lineage=settings.lineage,
        night=night.night,
        reason=f"{state.message or state.name}; it is after `{night.reached or 'its beginning'}`. To go on: {night.command}",
        link=link_of(settings, night.night),
    )
    _deliver(settings, alert)


def _deliver(settings: Settings, alert: Alert) -> None:
    recipients = recipients_of(settings.alerts)
    for problem in deliver(alert, recipients) if recipients else ():
        log.warning("alert %s of %s: %s", alert.kind, alert.night, problem)
