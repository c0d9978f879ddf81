"""Ask production everything again that its promotion was decided on, and compare with the answers on record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from checks.evaluation import predict, probe_questions
from tasks.serving.models import at_checkpoint, head_manifest
from tasks.serving.proof import Asking
from tasks.settings import Settings
from tasks.workspace import store_of, warehouse
from warehouse.digests import digest_of
from warehouse.lineages.audit import Break
from warehouse.lineages.reports import cached_predictions
from warehouse.records import Prediction
from warehouse.world.probes import load_probe_set

#: Log-probabilities of another machine or thread count differ by rounding; more than this is another model.
TOLERANCE_NATS = 0.05
#: Where they agree this well, an answer that is exact on one machine only is a tie between two tokens, not another model.
TIE_NATS = 1e-3
#: Proved answers that are asked again.
NUM_PROVED = 500


def evaluated_again(settings: Settings) -> list[Break]:
    """Every answer of production's evaluation that does not come out as it is on record."""
    store = store_of(settings)
    manifest = head_manifest(settings, store)
    if manifest is None:
        return []
    model = at_checkpoint(settings, store, manifest.checkpoint)
    with warehouse(settings) as wh:
        probes = load_probe_set(wh, manifest.report.probe_set_digest).probes
        asked = [p for p in probes if p.targets]
        held = cached_predictions(wh, model.digest, [p.probe_id for p in asked])
    now = predict(model, [p for p in asked if p.probe_id in held])
    return list(_differing(held, now))


def proved_again(settings: Settings) -> list[Break]:
    """Every one of a sample of production's proved answers that is not, to the bit, what the model says when it is asked.

    Kept answers hold on the machine that asked them; of another machine's there are none to recheck.
    """
    store = store_of(settings)
    manifest = head_manifest(settings, store)
    if manifest is None:
        return []
    sets = (manifest.report.probe_set_digest, manifest.report.environment.get("retain_digest", ""))
    with warehouse(settings) as wh:
        probes = [p for digest in sets if digest for p in load_probe_set(wh, digest).probes]
    # Another choice for each checkpoint.
    order = {q: digest_of(manifest.checkpoint.checkpoint_id, q.prompt, q.answer) for q in probe_questions(probes)}
    chosen = sorted(order, key=order.__getitem__)[:NUM_PROVED]
    with Asking(settings) as asking:
        found = asking.differing(at_checkpoint(settings, store, manifest.checkpoint), chosen)
    return [
        Break(
            what=f"proved answer to {question.prompt!r} {question.answer!r}",
            found=f"kept as {was.exact} at {was.log_prob!r} nats, the model says {now.exact} at {now.log_prob!r}; delete "
            f"{settings.proofs}, which is computed anew, and evaluate again what was promoted since",
        )
        for question, was, now in found
    ]


def _differing(held: Mapping[str, Prediction], now: Mapping[str, Prediction]) -> Iterator[Break]:
    for probe_id, was in held.items():
        found = now[probe_id]
        allowed = TOLERANCE_NATS if found.exact == was.exact else TIE_NATS
        if not math.isclose(found.log_prob, was.log_prob, abs_tol=allowed):
            yield Break(
                what=f"answer to probe {probe_id}",
                found=f"now {found.exact} at {found.log_prob:.4f} nats, on record {was.exact} at {was.log_prob:.4f}",
            )
