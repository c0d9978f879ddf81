"""What was done here: keys that sign, and how long ago each lineage had its last night."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from checks.gates.decide import load_policy
from tasks.doctor.health import Health, fault, ok, warning
from tasks.serving.signing import trusted_by
from tasks.settings import Settings
from tasks.workspace import warehouse
from warehouse.checkpoints.signing import fingerprint, public_key_of
from warehouse.nights.runs import RunState, newest_runs

#: Of a private key's file: nobody but its owner.
OTHERS = 0o077


def check_keys(settings: Settings) -> Health:
    """The private key can be read, by its owner alone; without one the policy must allow unsigned checkpoints."""
    private, trusted = settings.signing.private_key, trusted_by(settings)
    if not private:
        if load_policy(settings.policy).allow_unsigned:
            return ok("keys", f"no key; the policy {settings.policy} allows unsigned checkpoints; {len(trusted)} are trusted")
        return fault(
            "keys", f"no key, and the policy {settings.policy} wants signatures", "errata key, then signing.private_key"
        )
    path = Path(private)
    if "\n" not in private and path.stat().st_mode & OTHERS:
        return warning("keys", f"{path} can be read by others", f"chmod 600 {path}")
    return ok("keys", f"signs as {fingerprint(public_key_of(private))[:16]}; {len(trusted)} are trusted")


def check_nights(settings: Settings, now: datetime | None = None) -> list[Health]:
    """Hours since each lineage's last night; the settings' own lineage is a fault where that is too long ago."""
    with warehouse(settings) as wh:
        found = newest_runs(wh)
    lines = [_night(settings, run, now or datetime.now(UTC)) for run in found]
    if all(run.line.lineage != settings.lineage for run in found):
        lines.append(warning("nights", f"lineage {settings.lineage} never had a night", "errata refresh"))
    return lines


def _night(settings: Settings, run: RunState, now: datetime) -> Health:
    line = run.line
    again = f"errata refresh --lineage {line.lineage}"
    hours = (now - (run.finished_at or run.started_at)).total_seconds() / 3600
    make = fault if line.lineage == settings.lineage else warning
    if run.finished_at is None:
        said = f"lineage {line.lineage}: {line.night} was begun {hours:.1f} h ago and is at `{run.state}`"
        return make("nights", said, again) if hours > settings.alerts.within else ok("nights", said)
    said = f"lineage {line.lineage}: {line.night} ended {hours:.1f} h ago: {line.verdict}"
    if hours > settings.alerts.every:
        return make(
            "nights", f"{said}; one is due every {settings.alerts.every:g} h", f"{again}; see the schedule and its worker"
        )
    return ok("nights", said)
