"""Figures of the leaderboard, drawn as plain SVG: values at the end of each run, and curves along sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tasks.benchmark_rows import BenchmarkRow, Measured
from tasks.figures import Svg
from tasks.leaderboard import by_setting, describe

#: (title, key in a row's scores, what it means)
_PANELS = (
    ("SRR", "SRR", "edits that still hold"), ("GRR", "GRR", "their paraphrases"),
    ("same subject", "locality/relation_specificity", "its other facts kept"),
    ("neighbourhood", "locality/neighbourhood", "other subjects kept"),
    ("DD", "DD/known", "drawdown: known facts lost"), ("perplexity ratio", "perplexity_ratio", "on held text"),
)  # fmt: skip
_BARS = (
    ("SR", "SR"), ("GR", "GR"), ("locality, neighbourhood", "locality/neighbourhood"),
    ("locality, same subject", "locality/relation_specificity"), ("DD", "DD/known"), ("obsolete", "obsolete"),
)  # fmt: skip
# Okabe and Ito's colours: told apart also without red or green.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
#: Size of a curves' panel with its margins, how many stand in a row, and the head of each setting.
_WIDTH, _HEIGHT, _ACROSS, _HEAD = 360, 230, 3, 62


def _colours(rows: Sequence[BenchmarkRow]) -> dict[str, str]:
    names = sorted({row.editor for row in rows})
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}


def curves_svg(rows: Sequence[BenchmarkRow]) -> str:
    """What is left along sequences: for each setting with points six panels, one line an editor in each."""
    settings = by_setting([row for row in rows if row.curve])
    section = _HEAD + -(-len(_PANELS) // _ACROSS) * _HEIGHT
    svg = Svg(_ACROSS * _WIDTH + 20, 40 + section * max(1, len(settings)))
    svg.text(20, 26, "Along a sequence of edits", size=18)
    if not settings:
        svg.text(20, 50, "No sequence with points was measured.")
    for place, (setting, drawn) in enumerate(settings.items()):
        # Colours of the setting's own: eight are enough for it, if not for all.
        top, colours = 40 + place * section, _colours(drawn)
        svg.text(20, top + 16, setting, size=13)
        for number, name in enumerate(dict.fromkeys(row.editor for row in drawn)):
            svg.dot(26 + 110 * number, top + 34, colours[name], name)
            svg.text(36 + 110 * number, top + 38, name)
        for number, panel in enumerate(_PANELS):
            corner = (number % _ACROSS * _WIDTH + 56.0, number // _ACROSS * _HEIGHT + top + _HEAD + 8.0)
            _draw_panel(svg, panel, drawn, colours, corner)
    return svg.render("Retention, locality, drawdown and perplexity along a sequence of edits")


def _draw_panel(
    svg: Svg,
    panel: tuple[str, str, str],
    drawn: Sequence[BenchmarkRow],
    colours: Mapping[str, str],
    corner: tuple[float, float],
) -> None:
    """One metric over the number of edits, with its upper left corner at `corner`."""
    (title, key, meaning), (x0, y0), inner = panel, corner, (_WIDTH - 76, _HEIGHT - 66)
    known = [v for row in drawn for p in row.curve if (v := _of(p.scores, key)) is not None]
    low, high = (min([1.0, *known]), max([1.2, *known])) if key == "perplexity_ratio" else (min([0.0, *known]), 1.0)
    last = max(p.edits for row in drawn for p in row.curve)
    svg.text(x0, y0 - 6, f"{title} ({meaning})", size=13)
    to_x, to_y = _scale(0, last, x0, x0 + inner[0]), _scale(low, high, y0 + inner[1], y0)
    for step in range(5):
        value = low + (high - low) * step / 4
        svg.line(x0, to_y(value), x0 + inner[0], to_y(value))
        svg.text(x0 - 6, to_y(value) + 4, f"{value:.3g}", size=10, anchor="end", colour="#555")
    for edits in sorted({0, last // 2, last}):
        svg.text(to_x(edits), y0 + inner[1] + 16, str(edits), size=10, anchor="middle", colour="#555")
    for row in drawn:
        points = [(p.edits, value) for p in row.curve if (value := _of(p.scores, key)) is not None]
        svg.path([(to_x(edits), to_y(value)) for edits, value in points], colours[row.editor])
        for edits, value in points:
            svg.dot(to_x(edits), to_y(value), colours[row.editor], f"{row.editor}, {edits} edits: {title} {value:.3f}")


def scores_svg(rows: Sequence[BenchmarkRow]) -> str:
    """Values with their intervals at the end of each run: one panel a metric, one line a run."""
    drawn = [row for row in rows if row.scores]
    line, label, width = 20, 210, 190
    height = 70 + line * len(drawn)
    svg = Svg(label + (width + 24) * len(_BARS), height + 20)
    svg.text(20, 26, "Editors and modes, with 95% intervals", size=18)
    colours = _colours(drawn)
    for number, row in enumerate(drawn):
        y = 74 + line * number
        svg.text(20, y + 4, f"{row.editor}, {row.mode}, {row.edits} ({row.task})", size=11)
    for panel, (title, key) in enumerate(_BARS):
        x0 = label + 40 + (width + 18) * panel
        svg.text(x0, 50, title, size=12)
        found = [s for row in drawn if (s := row.scores.get(key)) is not None]
        low = min([0.0, *(s.low for s in found if s.low is not None)])
        to_x = _scale(low, 1.0, x0, x0 + width - 50)
        for value in (0.0, 0.5, 1.0):
            svg.line(to_x(value), 58, to_x(value), height - 6)
            svg.text(to_x(value), height + 8, f"{value:g}", size=10, anchor="middle", colour="#555")
        for number, row in enumerate(drawn):
            y, score = 74 + line * number, row.scores.get(key)
            if score is None or score.value is None:
                continue
            if score.low is not None and score.high is not None:
                svg.line(to_x(score.low), y, to_x(min(score.high, 1.0)), y, colours[row.editor], 2)
            svg.dot(to_x(score.value), y, colours[row.editor], f"{row.editor}: {title} {describe(score)}")
    return svg.render("Success, generalization, locality, drawdown and old answers of each editor and mode")


def _of(scores: Mapping[str, Measured], key: str) -> float | None:
    return scores[key].value if key in scores else None


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)
