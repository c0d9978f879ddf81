"""Put Errata on a Prefect server, as often as one likes: work pool, deployments, recipients, automations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound

from tasks.alerts.block import ErrataAlert
from tasks.alerts.delivery import recipients_of
from tasks.alerts.tell import has_server
from tasks.deploying.automations import apply, automations
from tasks.deploying.deployments import DeployFailed, deployments_for, put, read_file
from tasks.settings import Settings
from warehouse.errors import UsageError
from warehouse.records import Record

#: The name of the block's document.
BLOCK = "errata"
#: A worker's kind where a pool has to be made: flow runs are processes of the worker's machine.
PROCESS = "process"


class Deployed(Record):
    """What a server has now. `pool` and `automations`: made, changed or kept; `warnings`: what keeps people from being told."""

    pool: str
    deployments: tuple[str, ...]
    automations: dict[str, str]
    warnings: tuple[str, ...]


def deploy(settings: Settings, lineages: Sequence[str], root: Path, *, pool: str, cron: str = "", editor: str = "") -> Deployed:
    """Deploy lineages, and the alarms of all of them. The same again changes nothing.

    Args:
        root: the repository, where workers find it too.
        cron, editor: see `deployments_for`.

    Raises:
        UsageError: no server is configured, or `root` is not the repository.
        DeployFailed: Prefect refuses something.
    """
    if not has_server():
        raise UsageError(
            "no Prefect server is configured: start one (`prefect server start`) and set PREFECT_API_URL, such as "
            "http://127.0.0.1:4200/api"
        )
    document = deployments_for(read_file(root), lineages, pool, cron=cron, editor=editor)
    with get_client(sync_client=True) as client:
        if (trouble := client.api_healthcheck()) is not None:
            raise DeployFailed(f"the Prefect server at {client.api_url} does not answer: {trouble}")
        made, names = _ensure_pool(client, pool), put(document, root)
        told = set_alarms(client, settings)
        return Deployed(pool=made, deployments=tuple(names), automations=told, warnings=_warnings(settings))


def set_alarms(client: SyncPrefectClient, settings: Settings) -> dict[str, str]:
    """Recipients and automations, as the settings have them. Returns what was done with each automation."""
    within, every = timedelta(hours=settings.alerts.within), timedelta(hours=settings.alerts.every)
    return apply(client, automations(_keep_recipients(settings), within, every))


def _ensure_pool(client: SyncPrefectClient, name: str) -> str:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=PROCESS))
        return "made"
    return "kept"


def _keep_recipients(settings: Settings) -> UUID:
    """The id of the block's document, which stays the same."""
    to = recipients_of(settings.alerts)
    block = ErrataAlert(
        webhook=to.webhook,
        secret=to.secret,  # pyright: ignore[reportArgumentType]
        addresses=list(to.addresses),  # pyright: ignore[reportArgumentType]
        timeout=to.timeout_s,
        retries=to.retries,
    )
    saved: Any = block.save(BLOCK, overwrite=True)
    return saved


def _warnings(settings: Settings) -> tuple[str, ...]:
    to = recipients_of(settings.alerts)
    found = []
    if not to:
        found.append("nobody will be told: alerts.webhook and alerts.addresses are empty")
    if to.webhook and not to.secret:
        found.append(f"the webhook will not be told: {settings.alerts.secret_variable} is empty, so that nothing can be signed")
    return tuple(found)
