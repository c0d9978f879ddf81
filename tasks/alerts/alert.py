"""One alert: which night of which lineage, its verdict, the rules that failed, and where to read on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote

from pydantic import Field

from tasks.night.gate import reasons
from tasks.settings import Settings
from warehouse.digests import digest_of
from warehouse.records import Manifest, Record, RuleResult

AlertKind = Literal["rejected", "held", "broken", "late", "missing", "serving"]
TITLES: dict[AlertKind, str] = {
    "rejected": "was rejected and does not serve",
    "held": "is held until somebody decides",
    "broken": "broke off",
    "late": "did not end by its hour",
    "missing": "was the last one; none has ended since",
    "serving": "is promoted, and a server answers otherwise",
}


class FailedRule(Record):
    """A rule of the gate that was not met; `value` None where nothing could be measured."""

    metric: str
    slice: str
    op: str
    threshold: float
    value: float | None
    low: float | None
    high: float | None
    on_fail: str


class Alert(Record):
    """What is told, and to programs sent as JSON. The same event told twice has the same `alert_id`."""

    kind: AlertKind
    lineage: str
    night: str = ""
    verdict: str = ""
    checkpoint: str = ""
    failed_rules: tuple[FailedRule, ...] = ()
    reason: str = ""
    link: str = ""
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    alert_id: str = ""

    def model_post_init(self, _: object) -> None:
        if not self.alert_id:
            # Of what happened, not of when it was told.
            made = digest_of(self.kind, self.lineage, self.night, self.checkpoint, self.reason)[:24]
            object.__setattr__(self, "alert_id", made)

    @property
    def title(self) -> str:
        """One line for people."""
        return f"Errata {self.lineage}: {self.night or 'a night'} {TITLES[self.kind]}"

    @property
    def text(self) -> str:
        """The lines below it."""
        return "\n".join(part for part in (self.reason, self.link) if part) or self.title


def link_of(settings: Settings, night: str, lineage: str = "") -> str:
    """Where a person reads on, by `alerts.link`; empty where that is."""
    # No str.format: what else stands in braces in an address is not ours.
    filled = settings.alerts.link.replace("{lineage}", quote(lineage or settings.lineage, safe=""))
    return filled.replace("{night}", quote(night, safe=""))


def of_decision(settings: Settings, manifest: Manifest) -> Alert | None:
    """The alert of a night that was decided on; None where it was promoted."""
    if manifest.verdict == "promote":
        return None
    failed = tuple(_failed(result) for result in manifest.decision.failed_rules if result.rule.on_fail != "warn")
    return Alert(
        kind="rejected" if manifest.verdict == "reject" else "held",
        lineage=settings.lineage,
        night=manifest.night,
        verdict=manifest.verdict,
        checkpoint=manifest.checkpoint.checkpoint_id,
        failed_rules=failed,
        reason=" ".join(reasons(manifest.decision)),
        link=link_of(settings, manifest.night),
        at=manifest.decision.decided_at,
    )


def _failed(result: RuleResult) -> FailedRule:
    rule = result.rule.model_dump(include={"metric", "slice", "op", "threshold", "on_fail"})
    measured = result.score.model_dump(include={"value", "low", "high"}) if result.score else {}
    return FailedRule(**{"value": None, "low": None, "high": None, **rule, **measured})
