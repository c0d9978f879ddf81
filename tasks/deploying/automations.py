"""The automations of Errata as code: what makes a Prefect server tell somebody, and in which words."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from tasks.alerts.tell import NIGHT_EVENT, SERVING_EVENT

#: Every name begins so; names are what an automation is found again by.
OWNER = "errata: "
#: The states of a run that nobody waits for any more.
ENDS = ("Completed", "Failed", "Crashed", "TimedOut", "Cancelled")
#: Of the alert that an event of Errata carries.
TOLD = "{{ event.payload.alert | tojson }}"


def automations(block: UUID, within: timedelta, every: timedelta) -> list[AutomationCore]:
    """All of them.

    Args:
        block: the document of the `ErrataAlert` that delivers.
        within: how long a night may take from its scheduled hour.
        every: how long after the end of a night the next one has to have ended.
    """
    refused = {NIGHT_EVENT + end for end in ("rejected", "held")}
    made = [
        _automation(block, "a night does not serve", TOLD, match=_any_lineage(), expect=refused),
        _automation(block, "a server answers otherwise", TOLD, match=_any_lineage(), expect={SERVING_EVENT}),
    ]
    broken = _of_run("broken", '"run " ~ flow_run.name ~ " is " ~ flow_run.state.name ~ ": " ~ (flow_run.state.message or "")')
    made.append(
        _automation(block, "a run broke off", broken, match=_any_run(), match_related=_tagged("errata"),
                    expect={f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")})
    )  # fmt: skip
    due = f'"run " ~ flow_run.name ~ ", due at " ~ flow_run.expected_start_time ~ ", has not ended {_hours(within)} later"'
    made.append(
        _automation(
            block, "a night is late", _of_run("late", due), match=_any_run(), match_related=_tagged("nightly"),
            # Late: its hour came and no worker took it.
            after={"prefect.flow-run.Late", "prefect.flow-run.Pending"}, expect={f"prefect.flow-run.{state}" for state in ENDS},
            for_each={"prefect.resource.id"}, posture=Posture.Proactive, within=within,
        )
    )  # fmt: skip
    last = _json("missing", "event.payload.lineage", "event.payload.night", f'"no night has ended for {_hours(every)}"', '""')
    made.append(
        _automation(
            block, "no night came", last, match=_any_lineage(), after={f"{NIGHT_EVENT}*"}, expect={f"{NIGHT_EVENT}*"},
            for_each={"prefect.resource.id"}, posture=Posture.Proactive, within=every,
        )
    )  # fmt: skip
    return made


def apply(client: SyncPrefectClient, wanted: list[AutomationCore]) -> dict[str, str]:
    """Make them so. One that is as it should be is left alone, with all that it has counted; ids stay.

    Returns:
        What was done, by name: made, changed or kept.
    """
    done = {}
    for automation in wanted:
        found = client.read_automations_by_name(automation.name)
        if not found:
            client.create_automation(automation)
            done[automation.name] = "made"
            continue
        # One that people switched off stays off.
        asked = automation.model_copy(update={"enabled": found[0].enabled})
        if _plain(found[0]) != _plain(asked):
            # An owner is given once and refused in an update.
            client.update_automation(found[0].id, AutomationCore(**asked.model_dump(exclude={"owner_resource"})))
            done[automation.name] = "changed"
        else:
            done[automation.name] = "kept"
    return done


def _automation(block: UUID, name: str, body: str, **trigger: Any) -> AutomationCore:
    return AutomationCore(
        name=OWNER + name,
        description="Applied by `errata deploy`, which lays it over what is changed here.",
        trigger=EventTrigger(**({"posture": Posture.Reactive, "threshold": 1} | trigger)),
        actions=[SendNotification(block_document_id=block, subject=f"Errata: {name}", body=body)],
    )


def _plain(automation: AutomationCore | Automation) -> dict[str, Any]:
    return AutomationCore(**automation.model_dump()).model_dump()


def _any_lineage() -> ResourceSpecification:
    return ResourceSpecification.model_validate({"prefect.resource.id": "errata.lineage.*"})


def _any_run() -> ResourceSpecification:
    return ResourceSpecification.model_validate({"prefect.resource.id": "prefect.flow-run.*"})


def _tagged(tag: str) -> ResourceSpecification:
    return ResourceSpecification.model_validate({"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"})


def _of_run(kind: str, reason: str) -> str:
    """The alert of a run that Prefect knows and Errata does not, in Prefect's template language."""
    night, lineage = "flow_run.parameters.night or ''", "flow_run.parameters.lineage or 'main'"
    return _json(kind, lineage, night, reason, "(flow_run | ui_url) or ''")


def _json(kind: str, lineage: str, night: str, reason: str, link: str) -> str:
    fields = {"lineage": lineage, "night": night, "reason": reason, "link": link}
    return f'{{"kind": "{kind}", ' + ", ".join(f'"{name}": {{{{ ({what}) | tojson }}}}' for name, what in fields.items()) + "}"


def _hours(time: timedelta) -> str:
    return f"{time.total_seconds() / 3600:g} h"
