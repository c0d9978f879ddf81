"""The end of a night: prove what servers answer from, tell who wants to know, write the line."""

from __future__ import annotations

from tasks.alerts.tell import tell_of_night
from tasks.candidate import Candidate
from tasks.night.course import Night, finish, finish_empty
from tasks.proving.prove import prove
from warehouse.records import Manifest, NightRun


def close(run: Night, done: Candidate, manifest: Manifest | None) -> NightRun:
    """Safe to kill and to run again: servers are asked once more, and the same alert is told again.

    Args:
        manifest: what was promoted or refused; None where nothing was left to edit.
    """
    proved = prove(run.settings, manifest) if manifest else {}
    tell_of_night(run.settings, run.night, manifest)
    return finish(run, done, manifest, proved) if manifest else finish_empty(run, done)
