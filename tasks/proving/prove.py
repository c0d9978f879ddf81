"""After a promotion: the servers have until a deadline to answer from it; then the policy's choice."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from prefect import task

from tasks.alerts.alert import Alert, link_of
from tasks.alerts.tell import SERVING_EVENT, tell
from tasks.errors import TasksError
from tasks.proving.check import ask_server, keep, promoted_canaries
from tasks.proving.client import base_of
from tasks.serving.models import head_manifest
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.takeback.rollback import restore
from tasks.workspace import store_of, warehouse
from warehouse.lineages.serving import ServingCheck, last_check
from warehouse.records import CanarySet, EngineFacts, Manifest, checkpoint_id

log = logging.getLogger(__name__)
#: Seconds between two rounds over the servers.
BETWEEN_S = 5.0


class NotProved(TasksError):
    """A night may not begin: a server of the lineage was not seen to answer from what is promoted."""


@task(name="prove", **STEP)
def prove(settings: Settings, manifest: Manifest, sleep: Callable[[float], None] = time.sleep) -> dict[str, str]:
    """Ask every server of `serving.urls` until it answers from the promoted checkpoint, or the deadline is over.

    Safe to run again: what is proved is asked once more, and a channel that was rolled back already stays where it is.

    Returns:
        What each server showed, by its address; empty where nothing was to be proved.
    """
    urls = [base_of(url) for url in settings.serving.urls]
    if not urls or manifest.canaries is None or manifest.verdict != "promote":
        return {}
    served = head_manifest(settings, store_of(settings))
    if served is None or served.checkpoint.checkpoint_id != manifest.checkpoint.checkpoint_id:
        return {}
    facts = manifest.engine if settings.serving.weights else None
    found = _until_deadline(settings, promoted_canaries(settings), urls, sleep, facts)
    for check in found.values():
        keep(settings, check)
    wrong = [check for check in found.values() if check.verdict != "agrees"]
    done = {url: check.sentence for url, check in found.items()}
    if wrong:
        consequence = _act(settings, manifest, wrong)
        done = {url: f"{said}; {consequence}" if found[url] in wrong else said for url, said in done.items()}
        _tell(settings, manifest, wrong, consequence)
    return done


def _until_deadline(
    settings: Settings, canaries: CanarySet, urls: list[str], sleep: Callable[[float], None], weights: EngineFacts | None
) -> dict[str, ServingCheck]:
    end = time.monotonic() + settings.serving.deadline
    found: dict[str, ServingCheck] = {}
    while True:
        for url in urls:
            if url not in found or found[url].verdict != "agrees":
                found[url] = ask_server(settings, canaries, url, weights=weights)
        left = end - time.monotonic()
        if left <= 0 or all(check.verdict == "agrees" for check in found.values()):
            return found
        sleep(min(BETWEEN_S, left))


def _act(settings: Settings, manifest: Manifest, wrong: list[ServingCheck]) -> str:
    """Do what `serving.on_mismatch` says; returns it as a clause."""
    choice = settings.serving.on_mismatch
    if choice == "warn":
        return "warned"
    checkpoint = manifest.checkpoint
    # A server that does not answer serves nothing wrong, and the base has no place in the store to go back to.
    if choice == "roll_back" and any(c.verdict != "unreachable" for c in wrong):
        if checkpoint.parent is not None and checkpoint.parent != checkpoint_id(checkpoint.base_digest):
            restore(settings, checkpoint.parent, "serving: " + "; ".join(f"{c.url}: {c.sentence}" for c in wrong))
            return f"the channel serves {checkpoint.parent[:8]} again"
        return "nothing was promoted before it, so the next night waits until a check passes"
    return "the next night waits until a check passes"


def _tell(settings: Settings, manifest: Manifest, wrong: list[ServingCheck], consequence: str) -> None:
    for check in wrong:
        log.warning("%s: %s; %s", check.url, check.sentence, consequence)
        alert = Alert(
            kind="serving",
            lineage=settings.lineage,
            night=manifest.night,
            verdict=check.verdict,
            checkpoint=manifest.checkpoint.checkpoint_id,
            reason=f"{check.url}: {check.sentence}; {consequence}",
            link=link_of(settings, manifest.night),
        )
        facts = {
            "checkpoint": manifest.checkpoint.checkpoint_id,
            "url": check.url,
            "verdict": check.verdict,
            "reason": check.sentence,
            "consequence": consequence,
        }
        tell(settings, SERVING_EVENT, alert, facts)


def refuse_unproved(settings: Settings) -> None:
    """Before a night begins on what is served: under `hold` every server must have been seen to answer from it.

    Under `roll_back` those must that were asked; what could be taken back is not served any more. A checkpoint without
    canaries, and a server that is no longer in `serving.urls`, hold nobody up.

    Raises:
        NotProved: with what the last check of a server showed, and what to do.
    """
    choice, urls = settings.serving.on_mismatch, [base_of(url) for url in settings.serving.urls]
    if choice == "warn" or not urls:
        return
    served = head_manifest(settings, store_of(settings))
    if served is None or served.canaries is None:
        return
    for url in urls:
        with warehouse(settings) as wh:
            last = last_check(wh, settings.lineage, url, served.checkpoint.checkpoint_id)
        if last is None and choice == "hold":
            why = f"it was never asked for {served.checkpoint.checkpoint_id[:8]}"
        elif last is not None and last.verdict != "agrees":
            why = last.sentence
        else:
            continue
        raise NotProved(
            f"lineage {settings.lineage!r} waits (serving.on_mismatch {choice}): {url}: {why}. Bring the server to what is "
            f"promoted, then run: errata serving check {url} --lineage {settings.lineage}"
        )
