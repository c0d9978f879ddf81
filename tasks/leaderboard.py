"""The leaderboard of measured editors: Markdown tables, and figures drawn as plain SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from tasks.benchmark_rows import BenchmarkRow, Measured
from tasks.figures import Svg
from tasks.shapes import shapes_markdown

#: (title, key in a row's scores)
_COLUMNS = (
    ("SR", "SR"), ("GR", "GR"), ("SRR", "SRR"), ("GRR", "GRR"),
    ("neighbourhood", "locality/neighbourhood"), ("same subject", "locality/relation_specificity"),
    ("unrelated", "locality/unrelated"), ("one hop (gain)", "portability/one_hop:gain"),
    ("logical (gain)", "portability/logical:gain"), ("obsolete", "obsolete"), ("DD", "DD/known"),
    ("ppl ratio", "perplexity_ratio"), ("KL, nats", "KL"), ("fluency change, bits", "fluency/change"),
    ("latency ratio", "latency_ratio"),
)  # fmt: skip
_PANELS = (
    ("SRR", "SRR", "edits that still hold"), ("GRR", "GRR", "their paraphrases"),
    ("DD", "DD/known", "drawdown: known facts lost"), ("perplexity ratio", "perplexity_ratio", "on held text"),
)  # fmt: skip
_BARS = (
    ("SR", "SR"), ("GR", "GR"), ("locality, neighbourhood", "locality/neighbourhood"),
    ("locality, same subject", "locality/relation_specificity"), ("DD", "DD/known"), ("obsolete", "obsolete"),
)  # fmt: skip
# Okabe and Ito's colours: told apart also without red or green.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")


def leaderboard_markdown(rows: Sequence[BenchmarkRow]) -> str:
    """A section for each task, split, mode and size; a line for each editor, best GR first. Intervals are 95%."""
    parts = ["# Leaderboard", ""]
    if not rows:
        return "\n".join([*parts, "Nothing measured yet: run `errata benchmark`.", ""])
    newest = max(row.created_at for row in rows)
    parts += [
        f"Generated from the warehouse; last measured {newest:%Y-%m-%d %H:%M} UTC. Each value stands with its 95% "
        "interval; `-` was not measured. METRICS.md defines the columns; the share of `one hop` and `logical` answers "
        "is given as the gain over the base model, which gets some of them by itself.",
        "",
    ]
    for title, group in _grouped(rows).items():
        parts += [f"## {title}", "", *_table(group), *_notes(group), ""]
    parts += [shapes_markdown(rows)]
    commands = sorted({row.command for row in rows if row.command})
    parts += ["Made by:", "", *(f"    {command}" for command in commands), ""] if commands else []
    return "\n".join(parts)


def _grouped(rows: Iterable[BenchmarkRow]) -> dict[str, list[BenchmarkRow]]:
    groups: dict[str, list[BenchmarkRow]] = {}
    for row in sorted(rows, key=lambda r: (r.task, r.split, r.model_digest, r.mode, r.edits, r.batch_size)):
        size = f" in batches of {row.batch_size}" if row.batch_size not in (1, row.edits) else ""
        title = f"{row.task}, {row.mode}: {row.edits} edits{size} ({row.split} split, model {row.model_digest[:12]})"
        groups.setdefault(title, []).append(row)
    return groups


def _table(rows: Sequence[BenchmarkRow]) -> list[str]:
    measured = [row for row in rows if row.scores]
    if not measured:
        return []
    # A column that nobody measured says nothing; a single edit's SRR is its SR.
    keyed = [(title, key) for title, key in _COLUMNS if any(_value(row, key) is not None for row in measured)]
    if measured[0].mode in ("single", "batch"):
        keyed = [(title, key) for title, key in keyed if key not in ("SRR", "GRR")]
    head = ["editor", *(title for title, _ in keyed), "s/edit", "bytes/edit", "refused"]
    lines = [_row(head), _row(["---"] * len(head))]
    for row in sorted(measured, key=lambda r: (-(_value(r, "GR") or 0.0), r.editor)):
        cells = [f"`{row.editor}`", *(describe(row.scores.get(key)) for _, key in keyed)]
        seconds = "-" if row.seconds_per_edit is None else f"{row.seconds_per_edit:.3g}"
        lines.append(_row([*cells, seconds, f"{row.patch_bytes:,}", str(row.refused)]))
    return lines


def _notes(rows: Sequence[BenchmarkRow]) -> list[str]:
    notes = [f"- `{row.editor}`: {row.note}" for row in rows if row.note]
    return ["", *notes] if notes else []


def describe(score: Measured | None) -> str:
    """`0.970 (0.915 to 0.990)`, or `-`."""
    if score is None or score.value is None:
        return "-"
    if score.low is None or score.high is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"


def _value(row: BenchmarkRow, key: str) -> float | None:
    score = row.scores.get(key)
    return None if score is None else score.value


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


# ---------------------------------------------------------------- figures


def _colours(rows: Sequence[BenchmarkRow]) -> dict[str, str]:
    names = sorted({row.editor for row in rows})
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}


def curves_svg(rows: Sequence[BenchmarkRow]) -> str:
    """What is left along a sequence: one panel a metric, one line an editor, from the points that `every` asked for."""
    drawn = [row for row in rows if row.curve]
    width, height, left, top = 380, 230, 56, 78
    svg = Svg(2 * width + 20, 2 * height + 70)
    svg.text(20, 26, "Along a sequence of edits", size=18)
    colours = _colours(drawn)
    for number, (name, colour) in enumerate(colours.items()):
        svg.dot(26 + 110 * number, 44, colour, name)
        svg.text(36 + 110 * number, 48, name)
    if not drawn:
        svg.text(20, 50, "No sequence with points was measured.")
    for number, (title, key, meaning) in enumerate(_PANELS):
        x0, y0 = (number % 2) * width + left, (number // 2) * height + top
        inner = (width - left - 20, height - 66)
        values = [p.scores[key].value for row in drawn for p in row.curve if key in p.scores]
        known = [v for v in values if v is not None]
        low, high = (min([1.0, *known]), max([1.2, *known])) if key == "perplexity_ratio" else (min([0.0, *known]), 1.0)
        last = max((p.edits for row in drawn for p in row.curve), default=1)
        svg.text(x0, y0 - 6, f"{title} ({meaning})", size=13)
        to_x, to_y = _scale(0, last, x0, x0 + inner[0]), _scale(low, high, y0 + inner[1], y0)
        for step in range(5):
            value = low + (high - low) * step / 4
            svg.line(x0, to_y(value), x0 + inner[0], to_y(value))
            svg.text(x0 - 6, to_y(value) + 4, f"{value:.3g}", size=10, anchor="end", colour="#555")
        for edits in sorted({0, last // 2, last}):
            svg.text(to_x(edits), y0 + inner[1] + 16, str(edits), size=10, anchor="middle", colour="#555")
        for row in drawn:
            points = [(p.edits, _of(p.scores, key)) for p in row.curve]
            placed = [(to_x(edits), to_y(value), edits, value) for edits, value in points if value is not None]
            svg.path([(x, y) for x, y, _, _ in placed], colours[row.editor])
            for x, y, edits, value in placed:
                svg.dot(x, y, colours[row.editor], f"{row.editor} ({row.mode}), {edits} edits: {title} {value:.3f}")
    return svg.render("Retention, drawdown and perplexity along a sequence of edits")


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
