"""Figures of the pages, on the page's own ground and in its own colours, so that they follow dark and light."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from tasks.reporting.svg import Svg
from warehouse.dashboard.lineage import CheckpointLine
from warehouse.dashboard.night import FunnelStep
from warehouse.dashboard.overview import NightScore, Threshold

INK, SOFT, GRID, LINE, BAD, WARN = "var(--ink)", "var(--soft)", "var(--grid)", "var(--line)", "var(--bad)", "var(--warn)"
#: More nights than this are drawn without a mark for each: the figure has to stay small.
MOST_MARKS = 45
_COLOURS = {"promote": LINE, "reject": BAD, "hold": WARN}


def curve(title: str, scores: Sequence[NightScore], rule: Threshold | None) -> Markup:
    """One score over nights: the value, its interval as a band, the threshold as a line; rejected nights stand out."""
    svg = Svg(420, 150)
    left, right, top, bottom = 48, 408, 24, 128
    points = [(place, score) for place, score in enumerate(scores) if score.value is not None]
    numbers = [n for _, s in points for n in (s.value, s.low, s.high) if n is not None] + ([rule.threshold] if rule else [])
    svg.text(0, 14, title, size=13, colour=INK)
    if not points:
        svg.text(left, 80, "not measured", colour=SOFT)
        return Markup(svg.render(title, ground=""))
    low, high = min(numbers), max(numbers)
    pad = (high - low) * 0.06 or 0.02
    low, high = low - pad, high + pad

    def at(place: int, value: float) -> tuple[float, float]:
        across = (place + 0.5) / max(1, len(scores))
        return left + (right - left) * across, bottom - (bottom - top) * (value - low) / (high - low)

    for value in (low + pad, high - pad):
        y = at(0, value)[1]
        svg.line(left, y, right, y, GRID)
        svg.text(left - 6, y + 4, f"{value:.3g}", size=11, anchor="end", colour=SOFT)
    banded = [(place, s.low, s.high) for place, s in points if s.low is not None and s.high is not None]
    if len(banded) > 1:
        edge = [at(place, upper) for place, _, upper in banded] + [at(place, lower) for place, lower, _ in reversed(banded)]
        svg.area(edge, LINE, 0.18)
    elif banded:
        place, lower, upper = banded[0]
        svg.line(*at(place, lower), *at(place, upper), LINE, 4)
    if rule is not None:
        y = at(0, rule.threshold)[1]
        svg.line(left, y, right, y, BAD if rule.on_fail == "reject" else WARN, 1.5)
        svg.text(right, 14, f"{rule.op} {rule.threshold:g}, else {rule.on_fail}", size=11, anchor="end", colour=SOFT)
    svg.path([at(place, s.value or 0.0) for place, s in points], LINE)
    for place, s in points:
        colour = _COLOURS.get(s.verdict, LINE)
        if len(scores) <= MOST_MARKS or colour != LINE:
            svg.dot(*at(place, s.value or 0.0), colour, f"{s.night}, {s.verdict}: {s.value:.4f}")
    svg.text(left, 146, scores[0].night, size=11, colour=SOFT)
    svg.text(right, 146, scores[-1].night, size=11, anchor="end", colour=SOFT)
    return Markup(svg.render(f"{title} over {len(scores)} nights", ground=""))


def funnel(steps: Sequence[FunnelStep]) -> Markup:
    """Bars from records received to edits applied."""
    svg = Svg(640, 26 * len(steps) + 6)
    most = max((step.number for step in steps), default=0) or 1
    for place, step in enumerate(steps):
        y = 26 * place + 4
        svg.text(84, y + 15, step.step, size=13, anchor="end", colour=INK)
        svg.box(94, y, max(1.0, 480 * step.number / most), 20, LINE, step.meaning)
        svg.text(102 + 480 * step.number / most, y + 15, f"{step.number:,}", size=13, colour=INK)
    return Markup(svg.render("From records received to edits applied", ground=""))


def graph(lines: Sequence[CheckpointLine]) -> Markup:
    """Checkpoints from the newest down, each joined to its parent; what was not promoted stands beside the line."""
    high, knots = 26, {line.checkpoint_id: place for place, line in enumerate(lines)}
    svg = Svg(640, high * len(lines) + 10)

    def at(place: int) -> tuple[float, float]:
        return (20.0 if lines[place].verdict == "promote" else 44.0), high * place + 16.0

    for place, line in enumerate(lines):
        if line.parent is None:
            continue
        below = at(knots[line.parent]) if line.parent in knots else (20.0, high * len(lines) + 10.0)
        svg.line(*at(place), *below, SOFT, 1.5)
    for place, line in enumerate(lines):
        x, y = at(place)
        svg.dot(x, y, _COLOURS.get(line.verdict, LINE), line.checkpoint_id)
        mark = "  production" if line.is_head else ""
        words = f"{line.checkpoint_id[:12]}  {line.night or 'base'}  {line.verdict}, {line.edits} edits{mark}"
        svg.text(64, y + 4, words, size=13, colour=INK)
    return Markup(svg.render("Checkpoints and their parents, newest first", ground=""))
