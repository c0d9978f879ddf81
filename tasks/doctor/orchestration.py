"""Prefect: the server answers and fits, a worker is there, the next night is planned, and the alarms are set."""

from __future__ import annotations

from importlib.metadata import version

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from tasks.alerts.delivery import recipients_of
from tasks.alerts.tell import has_server
from tasks.deploying.automations import OWNER
from tasks.deploying.deployments import name_for
from tasks.doctor.health import Health, fault, ok, warning
from tasks.settings import Settings

DEPLOY = "errata deploy, in the repository's root"


def check_prefect(settings: Settings) -> list[Health]:
    """One line where no server is configured, else one for each of what a scheduled night needs of it."""
    if not has_server():
        return [ok("prefect", "no server is configured (PREFECT_API_URL): nights begin by `errata refresh` alone")]
    with get_client(sync_client=True) as client:
        if (trouble := client.api_healthcheck()) is not None:
            found = f"the server at {client.api_url} does not answer: {trouble}"
            return [fault("prefect", found, "start it, or see PREFECT_API_URL")]
        lines = [_server(client)]
        name = f"nightly-refresh/{name_for('nightly', settings.lineage)}"
        try:
            nightly = client.read_deployment_by_name(name)
        except ObjectNotFound:
            deploy = f"{DEPLOY}, with --lineage {settings.lineage}"
            return [*lines, fault("prefect", f"there is no deployment {name}", deploy), _alarms(client)]
        return [*lines, _schedule(client, nightly, name), _workers(client, nightly), _alarms(client)]


def check_alerts(settings: Settings) -> Health:
    """Somebody is told, and what a webhook gets can be signed."""
    to = recipients_of(settings.alerts)
    if not to:
        found = "nobody is told of a night that does not serve"
        return warning("alerts", found, "set alerts.webhook or alerts.addresses") if has_server() else ok("alerts", found)
    if to.webhook and not to.secret:
        variable = settings.alerts.secret_variable
        found = f"{variable} is empty: the webhook gets nothing"
        return fault("alerts", found, f"set {variable}, then errata deploy where a server runs")
    return ok("alerts", f"{'a webhook, signed; ' if to.webhook else ''}{len(to.addresses)} addresses")


def _server(client: SyncPrefectClient) -> Health:
    theirs, ours = client.api_version(), version("prefect")
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        return warning("prefect", f"the server is {theirs}, this client {ours}", "install the same version on both")
    return ok("prefect", f"the server at {client.api_url} is {theirs}")


def _schedule(client: SyncPrefectClient, nightly: DeploymentResponse, name: str) -> Health:
    if nightly.paused or not any(schedule.active for schedule in nightly.schedules):
        found = f"{name} is paused or has no schedule: no night begins by itself"
        return warning("schedule", found, f"prefect deployment resume {name}")
    planned = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[nightly.id])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))),
        limit=200,
    )
    due = sorted(run.expected_start_time for run in planned if run.expected_start_time is not None)
    if not due:
        cure = "wait a minute after `errata deploy`; then see that the server runs with SQLAlchemy below 2.1"
        return fault("schedule", f"{name} has a schedule, and the server plans no run of it", cure)
    return ok("schedule", f"{name} begins next at {due[0]:%Y-%m-%d %H:%M %Z}")


def _workers(client: SyncPrefectClient, nightly: DeploymentResponse) -> Health:
    pool = nightly.work_pool_name or ""
    start = f"prefect worker start --pool {pool}"
    if not pool:
        return fault("worker", "the nightly deployment has no work pool", DEPLOY)
    if client.read_work_pool(pool).is_paused:
        return fault("worker", f"the work pool {pool} is paused", f"prefect work-pool resume {pool}")
    online = [w.name for w in client.read_workers_for_work_pool(pool) if w.status is not None and w.status.value == "ONLINE"]
    if not online:
        return fault("worker", f"no worker of the pool {pool} is online: a planned night will not begin", start)
    return ok("worker", f"{len(online)} online in the pool {pool}")


def _alarms(client: SyncPrefectClient) -> Health:
    own = [one for one in client.read_automations() if one.name.startswith(OWNER)]
    off = [one.name for one in own if not one.enabled]
    if not own:
        return warning("alarms", "the server has no automation of Errata: nobody is told", DEPLOY)
    if off:
        return warning("alarms", f"switched off: {', '.join(off)}", "switch them on in Prefect's pages, under Automations")
    return ok("alarms", f"{len(own)} automations")
