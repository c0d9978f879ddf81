"""What a night talks to: the store, the source of updates, the servers of the model, and Prefect."""

from __future__ import annotations

from importlib.metadata import version

import httpx

from tasks.doctor.health import Health, fault, ok, warning
from tasks.night.ingest import nights_of
from tasks.proving.client import base_of
from tasks.settings import Settings
from tasks.workspace import store_of, warehouse
from warehouse.checkpoints.store_check import REQUIREMENT, check_store
from warehouse.errors import WarehouseError
from warehouse.lineages.serving import last_check
from warehouse.stream.wikidata_http import guarded_client, user_agent


def check_the_store(settings: Settings) -> Health:
    """Access, and every promise that promotion rests on, asked of the server itself."""
    store = store_of(settings)
    findings = check_store(store)
    broken = [f"{one.check}: {one.found}" for one in findings if not one.is_kept]
    if broken:
        return fault("store", f"{store.url} cannot be used: {'; '.join(broken)}", REQUIREMENT)
    return ok("store", f"{store.url} keeps {len(findings)} of {len(findings)} promises")


def check_source(settings: Settings) -> Health:
    """Where updates come from can be read; the live source has a contact, and answers."""
    if settings.source.kind != "wikidata":
        nights = nights_of(settings)
        return ok("source", f"{settings.source.kind} with {len(nights)} nights in {settings.source.path}")
    live = settings.wikidata
    if not live.contact:
        return fault("source", "wikidata.contact is empty", "set it to your address or URL: Wikimedia blocks clients without")
    agent = user_agent(version("errata"), live.contact)
    try:
        with guarded_client(live.hosts, agent, connect_timeout_s=live.connect_timeout, read_timeout_s=10.0) as client:
            answer = client.head(live.entity_url)
    except (httpx.HTTPError, WarehouseError) as error:
        return warning("source", f"{live.entity_url}: {error}", "see network, proxy and wikidata.hosts; the night runs without")
    if answer.status_code >= 400:
        return warning(
            "source", f"{live.entity_url} answers {answer.status_code}", "see wikidata.contact and wikidata.entity_url"
        )
    return ok("source", f"{live.entity_url} answers {answer.status_code} to {live.contact}")


def check_servers(settings: Settings) -> list[Health]:
    """What each server of the model said when it was last asked; it is not asked anew."""
    urls = [base_of(url) for url in settings.serving.urls]
    if not urls:
        return [ok("serving", "serving.urls names no server")]
    with warehouse(settings) as wh:
        found = {url: last_check(wh, settings.lineage, url) for url in urls}
    lines = []
    for url, last in found.items():
        ask = f"errata serving check {url} --lineage {settings.lineage}"
        if last is None:
            lines.append(warning("serving", f"{url} was never asked", ask))
        elif last.verdict == "agrees":
            lines.append(ok("serving", f"{url}, asked {last.asked_at:%Y-%m-%d %H:%M}: {last.sentence}"))
        else:
            make = warning if last.verdict == "unreachable" else fault
            lines.append(make("serving", f"{url}, asked {last.asked_at:%Y-%m-%d %H:%M}: {last.sentence}", ask))
    return lines
