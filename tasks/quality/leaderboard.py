"""The leaderboard of measured editors as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tasks.quality.bars import bars_markdown, is_in_forms
from tasks.quality.claims import shapes_markdown
from tasks.quality.rows import BenchmarkRow, describe, with_points

#: (title, key in a row's scores)
_COLUMNS = (
    ("SR", "SR"), ("GR", "GR"), ("SRR", "SRR"), ("GRR", "GRR"),
    ("GR, few-shot statements", "GR/few_shot"), ("GR, few-shot questions", "GR/few_shot_questions"), ("GR, chat", "GR/chat"),
    ("GR, plain", "GR/plain"),
    ("neighbourhood", "locality/neighbourhood"), ("same subject", "locality/relation_specificity"),
    ("unrelated", "locality/unrelated"), ("one hop (gain)", "portability/one_hop:gain"),
    ("logical (gain)", "portability/logical:gain"), ("obsolete", "obsolete"), ("DD", "DD/known"),
    ("ppl ratio", "perplexity_ratio"), ("KL, nats", "KL"), ("fluency change, bits", "fluency/change"),
    ("latency ratio", "latency_ratio"), ("ability", "ability"), ("published ES", "published/efficacy"),
    ("published PS", "published/paraphrase"), ("published NS", "published/specificity"),
)  # fmt: skip
_FORMS = (
    " The model is asked in the forms in which it answers (docs/FORMS.md), with a column of GR for each; `plain` holds the "
    "statements in a form that the edits were not trained on, where the model gave the old answer there."
)
#: Read beside exact match, the columns would look like success.
_PUBLISHED = (
    " `published` are the efficacy, paraphrase and specificity scores that papers print (the right answer is likelier than the "
    "other, by mean log-probability a token); they ask less than exact match does."
)


def leaderboard_markdown(rows: Sequence[BenchmarkRow]) -> str:
    """A section for each task, split, mode and size; a line for each editor, best GR first. Intervals are 95%."""
    parts = ["# Leaderboard", ""]
    if not rows:
        return "\n".join([*parts, "Nothing measured yet: run `errata benchmark`.", ""])
    newest = max(row.created_at for row in rows)
    parts += [
        f"Generated from the warehouse; last measured {newest:%Y-%m-%d %H:%M} UTC. Each value stands with its 95% "
        "interval; `-` was not measured. METRICS.md defines the columns; the share of `one hop` and `logical` answers "
        "is given as the gain over the base model, which gets some of them by itself. A line marked `of 500` is the point on "
        "the way of a sequence of 500 edits; what is only measured at an end is `-` there."
        + (_FORMS if is_in_forms(rows) else "")
        + (_PUBLISHED if any(key.startswith("published") for row in rows for key in row.scores) else ""),
        "",
    ]
    for title, group in by_setting(with_points(rows)).items():
        parts += [f"## {title}", "", *_table(group), *_notes(group), ""]
    # The literature's shapes are held against the settings of the survey.
    parts += [bars_markdown(rows), *([] if is_in_forms(rows) else [shapes_markdown(rows)])]
    commands = sorted({row.command for row in rows if row.command})
    parts += ["Made by:", "", *(f"    {command}" for command in commands), ""] if commands else []
    return "\n".join(parts)


def by_setting(rows: Iterable[BenchmarkRow]) -> dict[str, list[BenchmarkRow]]:
    """Rows that may be compared, under a title that says what was done."""
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
        name = f"`{row.editor}` of {row.longer}" if row.longer else f"`{row.editor}`"
        cells = [name, *(describe(row.scores.get(key)) for _, key in keyed)]
        seconds = "-" if row.seconds_per_edit is None else f"{row.seconds_per_edit:.3g}"
        seconds += "" if row.device == "cpu" else f" ({row.device})"
        # How many of a longer sequence's refusals came before a point is not kept.
        lines.append(_row([*cells, seconds, f"{row.patch_bytes:,}", "-" if row.longer else str(row.refused)]))
    return lines


def _notes(rows: Sequence[BenchmarkRow]) -> list[str]:
    notes = [f"- `{row.editor}`: {row.note}" for row in rows if row.note]
    return ["", *notes] if notes else []


def _value(row: BenchmarkRow, key: str) -> float | None:
    score = row.scores.get(key)
    return None if score is None else score.value


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
