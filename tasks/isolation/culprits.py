"""The evidence against edits that were taken out of a night: in the ledger, in the trail, and in the queue of what waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import task

from tasks.candidate import Candidate
from tasks.isolation.group_testing import Isolation
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.trail import note
from tasks.workspace import warehouse
from warehouse.lineages.edits import edits_of, settle_edits
from warehouse.nights.held_edits import HeldEdit, hold
from warehouse.records import Record
from warehouse.world.forms import told

#: How the ledger's reason begins of an edit that was found to be a culprit, and of one that was not explored.
HELD_BACK = ("culprit:", "held back:")


class Culprit(Record):
    """An edit that was taken out, with the evidence, all of it seen beside the edits that were kept.

    Attributes:
        broken: how many probes are right without it and wrong with it; `probes`: some of them.
        missed: its own prompts and rephrases that are answered wrongly although it was made.
        lost: how it is served, where it holds in the measured model and not there; empty of any other culprit.
    """

    request_id: str
    broken: int
    probes: tuple[tuple[str, str], ...]
    missed: tuple[tuple[str, str], ...] = ()
    lost: str = ""

    @property
    def sentence(self) -> str:
        if self.lost:
            what = "the measured model answers it, and what would be served does not"
            return f"{HELD_BACK[0]} lost in serving: {what} ({self.lost})"
        parts = [f"it breaks {self.broken} probes{_shown(self.probes)}"] if self.broken else []
        parts += [f"{len(self.missed)} of its own prompts are not learnt{_shown(self.missed)}"] if self.missed else []
        return f"{HELD_BACK[0]} beside the edits that were kept " + (" and ".join(parts) or "the gate fails with it")


def _shown(probes: Sequence[tuple[str, str]]) -> str:
    return f" ({'; '.join(f'{kind}: {told(prompt)}' for kind, prompt in probes[:3])})" if probes else ""


class Isolated(Record):
    """What came of looking for culprits. `rest`: the night without them, to be evaluated and gated as any other."""

    isolation: Isolation
    culprits: tuple[Culprit, ...]
    rest: Candidate


def _body(culprit: Culprit) -> dict[str, Any]:
    """For the trail; one that is not lost in serving is told as releases before told it, so that a rerun adds nothing."""
    return culprit.model_dump(mode="json", exclude=None if culprit.lost else {"lost"})


@task(name="quarantine culprits", **STEP)
def quarantine_culprits(settings: Settings, done: Candidate, found: Isolated) -> None:
    """Write the evidence against each culprit into the ledger and the trail, and put it into the queue of what waits.

    The same again changes nothing.

    Args:
        done: the whole night, whose candidate is rejected already.
    """
    rejected = done.checkpoint_id
    why = {c.request_id: c.sentence for c in found.culprits}
    why |= {name: f"{HELD_BACK[1]} the budget of evaluations ended before it" for name in found.isolation.unexplored}
    with warehouse(settings) as wh, wh.transaction():
        lines = [line for line in edits_of(wh, settings.lineage, done.night) if line.checkpoint_id == rejected]
        against = {c.request_id: c for c in found.culprits}
        for edit in (line.edit for line in lines if line.edit.request_id in why):
            sentence, culprit = why[edit.request_id], against.get(edit.request_id)
            settle_edits(
                wh, settings.lineage, done.night, rejected, status="rejected", reason=sentence, edit_ids=[edit.edit_id]
            )
            hold(
                wh,
                [
                    HeldEdit(
                        lineage=settings.lineage,
                        edit_id=edit.edit_id,
                        request_id=edit.request_id,
                        night=done.night,
                        checkpoint_id=rejected,
                        cause="culprit" if culprit else "unexplored",
                        sentence=sentence,
                        broken=culprit.broken if culprit else 0,
                        probes=culprit.probes if culprit else (),
                    )
                ],
            )
        body = {
            "checkpoint": rejected,
            "culprits": {c.request_id: _body(c) for c in found.culprits},
            "isolation": found.isolation.model_dump(mode="json", exclude={"kept"}),
            "kept": len(found.isolation.kept),
        }
        note(settings, wh, "culprits", done.night, body, reason="; ".join(c.sentence for c in found.culprits))
