"""What each editor must reach on the reference model and on a pretrained one, and whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from editors.base import Mode
from tasks.quality.claims import Measurements
from tasks.quality.rows import BenchmarkRow, describe


@dataclass(frozen=True)
class Bar:
    """What several editors must reach: the least value of one score, or with `at_most` the greatest."""

    title: str
    key: str
    limit: float
    editors: tuple[str, ...]
    mode: Mode = "single"
    at_most: bool = False

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit


_NEIGHBOURS = "locality/neighbourhood"
BARS = (
    Bar("SR", "SR", 0.95, (
        "ft_m", "ft_l2", "ft_kl", "ewc", "r_rome", "rome", "emmet", "memit", "pmet", "alphaedit", "mend", "malmen", "serac",
        "grace", "t_patcher", "wise", "lora", "adalora", "ike", "minimal_patch")),
    Bar("SR", "SR", 0.90, ("enn", "cnp", "calinet", "ice", "ultraedit")),
    Bar("SR", "SR", 0.80, ("knowledge_editor",)),
    Bar("GR", "GR", 0.80, (
        "r_rome", "memit", "pmet", "emmet", "alphaedit", "mend", "malmen", "serac", "lora", "adalora", "ft_m")),
    Bar("neighbourhood", _NEIGHBOURS, 0.98, ("grace", "serac")),
    Bar("neighbourhood", _NEIGHBOURS, 0.85, (
        "rome", "r_rome", "emmet", "memit", "pmet", "alphaedit", "ultraedit", "minimal_patch")),
)  # fmt: skip

_NIGHTS: Mode = "sequential-batch"
#: Of a model that is asked in several forms, such as SmolLM2; plain statements are the form that nothing was trained on.
FORM_BARS = (
    Bar("SR", "SR", 0.97, ("ledger",)),
    Bar("SR", "SR", 0.95, ("r_rome", "memit", "pmet", "alphaedit", "ft_m", "lora", "grace")),
    Bar("GR", "GR", 0.80, ("r_rome", "memit", "pmet", "alphaedit")),
    Bar("GR in few-shot statements", "GR/few_shot", 0.90, ("ledger",)),
    Bar("GR in few-shot questions", "GR/few_shot_questions", 0.90, ("ledger",)),
    Bar("GR in chat", "GR/chat", 0.90, ("ledger",)),
    Bar("GR in plain statements", "GR/plain", 0.60, ("ledger",)),
    Bar("neighbourhood", _NEIGHBOURS, 0.98, ("ledger",)),
    Bar("neighbourhood", _NEIGHBOURS, 0.99, ("grace",)),
    Bar("same subject", "locality/relation_specificity", 0.85, ("ledger",)),
    Bar("SRR after nights", "SRR", 0.97, ("ledger",), _NIGHTS),
    Bar("GRR after nights", "GRR", 0.90, ("ledger",), _NIGHTS),
    Bar("DD after nights", "DD/known", 0.01, ("ledger",), _NIGHTS, at_most=True),
    Bar("perplexity ratio after nights", "perplexity_ratio", 1.005, ("ledger",), _NIGHTS, at_most=True),
)


def is_in_forms(rows: Sequence[BenchmarkRow]) -> bool:
    """Whether the rows are of a model that is asked in several forms; what holds on the reference model is not asked of it."""
    return any(bar.key in row.scores for row in rows for bar in FORM_BARS if bar.key.startswith("GR/"))


def bars_markdown(rows: Sequence[BenchmarkRow]) -> str:
    """A line for each bar: who is above it, who below and by what interval, who is unmeasured."""
    measured = Measurements.of(rows, "report")
    lines = [
        "## Bars",
        "",
        "Edits of the report split, single ones where nothing else is said, against what each editor must reach; what falls "
        "short stands with its interval.",
        "",
        "| score | must reach | reached by | short | not measured |",
        "| --- | --- | --- | --- | --- |",
    ]
    for bar in FORM_BARS if is_in_forms(rows) else BARS:
        reached, short, unknown = [], [], []
        for editor in bar.editors:
            score = measured.score(editor, bar.mode, bar.key)
            if score is None or score.value is None:
                unknown.append(f"`{editor}`")
            elif bar.holds(score.value):
                reached.append(f"`{editor}` {score.value:.3f}")
            else:
                short.append(f"`{editor}` {describe(score)}")
        cells = (", ".join(found) or "-" for found in (reached, short, unknown))
        lines.append(f"| {bar.title} | {_limit(bar)} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _limit(bar: Bar) -> str:
    return f"at most {bar.limit:g}" if bar.at_most else f"{bar.limit:.2f}"
