"""Ask a server the canaries of what its lineage promoted, and keep what it showed."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from checks.canaries import Judged, judge
from tasks.proving.client import CompletionsServer, ServerUnavailable, base_of
from tasks.proving.weights import WeightsSeen, compare_weights
from tasks.serving.models import head_manifest
from tasks.settings import Settings
from tasks.trail import mirror_audit, note
from tasks.workspace import store_of, warehouse
from warehouse.checkpoints.canaries import read_canaries
from warehouse.errors import NotFound
from warehouse.lineages.serving import ServingCheck, last_check, save_check
from warehouse.records import CanarySet, EngineFacts


def promoted_canaries(settings: Settings) -> CanarySet:
    """The canaries of the checkpoint that the lineage's channel serves.

    Raises:
        NotFound: nothing was promoted yet, or that checkpoint has none.
        IntegrityError: they are damaged.
    """
    store = store_of(settings)
    manifest = head_manifest(settings, store)
    if manifest is None:
        raise NotFound(
            f"channel {settings.channel_name!r} serves nothing yet, so no server can be proved; run `errata refresh`"
        )
    return read_canaries(store, manifest)


def promoted_weights(settings: Settings) -> EngineFacts | None:
    """What is known of the served folder's tensors, where `serving.weights` asks for it; None for older checkpoints too."""
    manifest = head_manifest(settings, store_of(settings)) if settings.serving.weights else None
    return manifest and manifest.engine


def check_server(settings: Settings, url: str, model: str = "") -> ServingCheck:
    """Ask one server, compare, and write the result into the warehouse and the trail.

    Raises:
        NotFound: there is nothing to compare with.
        UsageError: no address of a server.
    """
    found = ask_server(settings, promoted_canaries(settings), url, model, promoted_weights(settings))
    keep(settings, found)
    return found


def ask_server(
    settings: Settings, canaries: CanarySet, url: str, model: str = "", weights: EngineFacts | None = None
) -> ServingCheck:
    """Ask one server and compare; nothing is written. A server that does not answer is a result, too.

    Args:
        weights: compare the weights that the engine holds with these; a tensor that is another one is a difference.

    Raises:
        UsageError: no address of a server.
    """
    serving = settings.serving
    server = CompletionsServer(
        base_of(url),
        model or serving.model,
        key=os.environ.get(serving.key_variable, ""),
        timeout_s=serving.timeout,
        retries=serving.retries,
    )
    known = ServingCheck(
        lineage=settings.lineage,
        url=server.url,
        model=server.model,
        checkpoint_id=canaries.checkpoint_id,
        asked_at=datetime.now(UTC),
        verdict="unreachable",
        sentence="",
    )
    try:
        with server:
            answers = [server.complete(canary.prompt, canaries.max_tokens) for canary in canaries.canaries]
            seen = None if weights is None else _weights_of(server, weights)
    except ServerUnavailable as error:
        return known.model_copy(update={"model": server.model, "sentence": str(error)})
    judged = judge(canaries, answers, serving.agreement)
    told: dict[str, Any] = {"verdict": judged.verdict, "sentence": sentence_of(canaries, judged)}
    body = judged.model_dump(mode="json", exclude={"verdict"})
    if seen is not None:
        told["sentence"] += f"; {seen.sentence}"
        body["weights"] = seen.model_dump(mode="json")
        if seen.different and judged.verdict == "agrees":
            told["verdict"] = "differs"
    return known.model_copy(update={**told, "model": server.model, "body": body})


def _weights_of(server: CompletionsServer, facts: EngineFacts) -> WeightsSeen:
    try:
        return compare_weights(facts, server.weights())
    except ServerUnavailable as error:
        return WeightsSeen(why_not=str(error))


def sentence_of(canaries: CanarySet, judged: Judged) -> str:
    """What a person needs to know, in a line."""
    counts = f"edits {judged.edits} of {judged.num_edits}, bystanders {judged.bystanders} of {judged.num_bystanders}"
    own, total = canaries.checkpoint_id, judged.num_edits + judged.num_bystanders
    if judged.verdict == "agrees":
        return f"the server answers as {own[:8]}, which is promoted: {counts}"
    if judged.verdict == "garbled":
        return (
            f"the server is broken: {judged.meaningless} of {total} answers are empty or mean nothing, as where weights "
            f"overflow fp16 and logits are NaN; as {own[:8]}: {counts}"
        )
    if own in judged.answers_as:
        return (
            f"the server answers as {own[:8]} for the most part, and not as it should: {counts}; another dtype, a quantised "
            "copy or a changed tensor"
        )
    if not judged.answers_as:
        best = max(judged.fits, key=lambda fit: fit.total)
        return (
            f"the server answers as no checkpoint of this lineage: as {own[:8]}, {counts}; best as "
            f"{_name(canaries, best.checkpoint_id)}, {best.total} of {total}; tensors may be missing or changed"
        )
    names = " or ".join(_name(canaries, one) for one in judged.answers_as)
    more = "; it was not reloaded" if judged.answers_as != (canaries.line[0],) else (
        "; the edits are not in it: it was never reloaded, or its loader leaves their tensors out"
    )  # fmt: skip
    return f"the server still answers as {names}, not as {own[:8]}: {counts}{more}"


def _name(canaries: CanarySet, checkpoint: str) -> str:
    return "the base" if checkpoint == canaries.line[0] else checkpoint[:8]


def keep(settings: Settings, check: ServingCheck) -> None:
    """Into the warehouse each time; into the trail where it says something else than the last one of this server.

    A monitor asks every minute, and the trail is for what changed.
    """
    with warehouse(settings) as wh, wh.transaction():
        before = last_check(wh, check.lineage, check.url)
        place = save_check(wh, check)
        if before is None or _said(before) != _said(check):
            # Its place is part of the subject: the same answer, after another one, is another event.
            subject = f"{check.checkpoint_id}@{check.url}#{place}"
            payload = {"checkpoint": check.checkpoint_id, "url": check.url, "model": check.model, "verdict": check.verdict}
            note(settings, wh, "serving", subject, {**payload, **check.body}, reason=check.sentence)
    mirror_audit(settings)


def _said(check: ServingCheck) -> tuple[str, str, object]:
    return check.checkpoint_id, check.verdict, check.body
