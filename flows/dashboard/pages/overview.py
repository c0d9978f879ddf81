"""The overview: production now, the last nights, and curves of what the gate judges."""

from __future__ import annotations

from datetime import datetime

from flows.dashboard.addresses import night_page
from flows.dashboard.asking import Page, Visit
from flows.dashboard.figures import curve
from flows.dashboard.sheets import Column, Sheet
from warehouse.dashboard.overview import (
    MISSING,
    NightLine,
    NightScore,
    Threshold,
    night_lines,
    night_scores,
    served_by,
    serving_now,
    thresholds,
    with_missing_days,
)
from warehouse.errors import UsageError
from warehouse.records import Record

#: (title, metric, slice), in the order of the page.
CURVES = (
    ("SR", "SR", ""), ("GR", "GR", ""), ("SRR", "SRR", ""), ("ESR", "ESR", ""),
    ("locality, neighbourhood", "locality", "neighbourhood"), ("DD, known", "DD", "known"),
    ("perplexity ratio", "perplexity_ratio", ""),
)  # fmt: skip
#: Of the strip, and at first of the curves; curves of more than the last would not fit a page.
NIGHTS, MOST_NIGHTS = 30, 180
#: Verdict -> the letter on its mark: colour is not the only sign.
LETTERS = {"promote": "P", "reject": "R", "hold": "H", MISSING: "–"}


class ShownScore(Record):
    """A score of the newest night that was decided, with the rule it was held against."""

    score: str
    night: str
    measured: tuple[float | None, float | None, float | None]
    n: int
    rule: str


def overview(asked: Visit) -> Page:
    """Production, the strip and the curves of one lineage.

    Raises:
        UsageError: `nights` is no number from 1 to 180.
    """
    wh, number = asked.wh, asked.text("nights") or str(NIGHTS)
    if not number.isdecimal() or not 1 <= int(number[:6]) <= MOST_NIGHTS:
        raise UsageError(f"nights {number!r}: expected a number from 1 to {MOST_NIGHTS}")
    lines = with_missing_days(night_lines(wh, asked.lineage, limit=int(number))[0])[: int(number)]
    strip = lines[:NIGHTS]
    scores = night_scores(wh, asked.lineage, [line.night for line in lines], [(m, s) for _, m, s in CURVES])
    rules = {(rule.metric, rule.slice): rule for rule in thresholds(wh, asked.lineage)}
    by_key: dict[tuple[str, str], list[NightScore]] = {}
    for score in scores:
        by_key.setdefault((score.metric, score.slice), []).append(score)
    return Page(
        f"Lineage {asked.lineage}",
        "overview.html",
        (
            Sheet(
                "latest", "Scores of the newest decided night", _LATEST, _latest(by_key, rules), empty="no night was decided"
            ),
            Sheet("nights", "Nights of the strip", (), strip),
            Sheet("scores", "Scores of the curves", (), scores),
        ),
        {
            "production": served_by(wh, asked.lineage),
            "servers": serving_now(wh, asked.lineage),
            "strip": [_mark(asked.lineage, line) for line in reversed(strip)],
            "nights": int(number),
            "ranges": (NIGHTS, 90, MOST_NIGHTS),
            "curves": [curve(title, by_key.get((m, s), []), rules.get((m, s))) for title, m, s in CURVES],
        },
    )


_LATEST = (
    Column("score", "score"),
    Column("night", "night", "night"),
    Column("measured", "value (95% interval)", "score"),
    Column("n", "of", "number"),
    Column("rule", "rule"),
)


def _latest(by_key: dict[tuple[str, str], list[NightScore]], rules: dict[tuple[str, str], Threshold]) -> list[ShownScore]:
    found = []
    for title, metric, part in CURVES:
        if scores := by_key.get((metric, part)):
            last, rule = scores[-1], rules.get((metric, part))
            words = f"{rule.op} {rule.threshold:g}, else {rule.on_fail}" if rule else ""
            measured = (last.value, last.low, last.high)
            found.append(ShownScore(score=title, night=last.night, measured=measured, n=last.n, rule=words))
    return found


def _mark(lineage: str, line: NightLine) -> dict[str, str | None]:
    verdict = line.verdict if line.verdict in LETTERS else "other"
    return {
        "address": None if line.verdict == MISSING else night_page(lineage, line.night),
        "verdict": verdict,
        "letter": LETTERS.get(line.verdict, "?"),
        "words": f"{line.night}: {line.verdict}",
    }


def age_words(then: datetime, now: datetime) -> str:
    """How long ago something was, in one unit."""
    seconds = max(0.0, (now - then).total_seconds())
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'' if number == 1 else 's'} ago"
    return "just now"
