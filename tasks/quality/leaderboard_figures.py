"""Figures of the leaderboard, drawn as plain SVG: values at the end of each run, and curves along sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from editors.catalogue import editor_class, names
from tasks.quality.leaderboard import by_setting
from tasks.quality.rows import BenchmarkRow, Measured, describe
from tasks.reporting.svg import Svg

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
#: Drawn where some row has them: rows of before have not.
_ASIDE = (
    ("published ES", "published/efficacy"), ("published PS", "published/paraphrase"),
    ("published NS", "published/specificity"), ("ability", "ability"),
)  # fmt: skip
# Okabe and Ito's colours, told apart also without red or green; then some of Tol's, for the largest family.
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F",
    "#882255", "#999933", "#332288", "#DDCC77", "#AA4499", "#777777",
)  # fmt: skip
#: Size of a curves' panel with its margins, how many stand in a row, and the head of each setting.
_WIDTH, _HEIGHT, _ACROSS, _HEAD = 360, 230, 3, 62
#: Of the scores: height of a run's line, width of the editors' names and of a metric's panel.
_LINE, _LABEL, _PANEL = 20, 150, 190


def _colours(rows: Sequence[BenchmarkRow]) -> dict[str, str]:
    names = sorted({row.editor for row in rows})
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}


def _by_family(rows: Sequence[BenchmarkRow]) -> dict[str, list[BenchmarkRow]]:
    """Rows that may be compared, by setting and family: more lines than that nobody tells apart."""
    known = set(names())
    groups: dict[str, list[BenchmarkRow]] = {}
    for setting, drawn in by_setting(rows).items():
        # Rows of a package that is not installed here have no card.
        families = [(editor_class(r.editor).card.family if r.editor in known else "other", r.editor, r) for r in drawn]
        for family, _, row in sorted(families, key=lambda found: found[:2]):
            groups.setdefault(f"{setting}: {family}", []).append(row)
    return groups


def curves_svg(rows: Sequence[BenchmarkRow]) -> str:
    """What is left along sequences: for each setting and family with points six panels, one line an editor in each."""
    settings = _by_family([row for row in rows if row.curve])
    section = _HEAD + -(-len(_PANELS) // _ACROSS) * _HEIGHT
    svg = Svg(_ACROSS * _WIDTH + 20, 40 + section * max(1, len(settings)))
    svg.text(20, 26, "Along a sequence of edits", size=18)
    if not settings:
        svg.text(20, 50, "No sequence with points was measured.")
    for place, (setting, drawn) in enumerate(settings.items()):
        # Colours of the setting's own: eight are enough for it, if not for all.
        top, colours = 40 + place * section, _colours(drawn)
        svg.text(20, top + 16, setting, size=13)
        shown = list(dict.fromkeys(row.editor for row in drawn))
        apart = min(120, (_ACROSS * _WIDTH - 40) // len(shown))
        for number, name in enumerate(shown):
            svg.dot(26 + apart * number, top + 34, colours[name], name)
            svg.text(34 + apart * number, top + 38, name, size=12 if apart > 90 else 10)
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
    """Values with their intervals at the end of each run: one panel a metric, one line a run, by setting and family."""
    groups = _by_family([row for row in rows if row.scores])
    height = 60 + _LINE * sum(len(drawn) + 2 for drawn in groups.values())
    bars = [*_BARS, *(bar for bar in _ASIDE if any(_of(row.scores, bar[1]) is not None for row in rows))]
    svg = Svg(_LABEL + (_PANEL + 24) * len(bars), height + 20)
    svg.text(20, 26, "Editors and modes, with 95% intervals", size=18)
    y = 50
    for setting, drawn in groups.items():
        svg.text(20, y, setting, size=12)
        _draw_scores(svg, drawn, bars, y + _LINE)
        y += _LINE * (len(drawn) + 2)
    return svg.render("Success, generalization, locality, drawdown and old answers of each editor and mode")


def _draw_scores(svg: Svg, drawn: Sequence[BenchmarkRow], bars: Sequence[tuple[str, str]], top: int) -> None:
    """The lines of one setting and family, from `top` down: the metrics' names, then a line a run."""
    colours = _colours(drawn)
    for number, row in enumerate(drawn):
        svg.text(30, top + _LINE * number + 18, row.editor, size=11)
    for panel, (title, key) in enumerate(bars):
        x0 = _LABEL + (_PANEL + 18) * panel
        svg.text(x0, top, title, size=10, colour="#555")
        found = [(number, row, s) for number, row in enumerate(drawn) if (s := row.scores.get(key)) is not None]
        to_x = _scale(min([0.0, *(s.low for *_, s in found if s.low is not None)]), 1.0, x0, x0 + _PANEL - 50)
        for value in (0.0, 0.5, 1.0):
            svg.line(to_x(value), top + 4, to_x(value), top + _LINE * len(drawn) + 4)
        for number, row, score in found:
            if score.value is None:
                continue
            y, tip = top + _LINE * number + 14, f"{row.editor}: {title} {describe(score)}"
            if score.low is not None and score.high is not None:
                svg.line(to_x(score.low), y, to_x(min(score.high, 1.0)), y, colours[row.editor], 2)
            svg.dot(to_x(score.value), y, colours[row.editor], tip)


def _of(scores: Mapping[str, Measured], key: str) -> float | None:
    return scores[key].value if key in scores else None


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)
