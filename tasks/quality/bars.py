"""What each editor must reach with single edits on the reference model, and whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.quality.claims import Measurements
from tasks.quality.rows import BenchmarkRow, describe


@dataclass(frozen=True)
class Bar:
    """The least value of one score for several editors."""

    title: str
    key: str
    least: float
    editors: tuple[str, ...]


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


def bars_markdown(rows: Sequence[BenchmarkRow]) -> str:
    """A line for each bar: who is above it, who below and by what interval, who is unmeasured."""
    measured = Measurements.of(rows, "report")
    lines = [
        "## Bars",
        "",
        "Single edits of the report split against what each editor must reach; what falls short stands with its interval.",
        "",
        "| score | at least | reached by | short | not measured |",
        "| --- | --- | --- | --- | --- |",
    ]
    for bar in BARS:
        reached, short, unknown = [], [], []
        for editor in bar.editors:
            score = measured.score(editor, "single", bar.key)
            if score is None or score.value is None:
                unknown.append(f"`{editor}`")
            elif score.value >= bar.least:
                reached.append(f"`{editor}` {score.value:.3f}")
            else:
                short.append(f"`{editor}` {describe(score)}")
        cells = (", ".join(found) or "-" for found in (reached, short, unknown))
        lines.append(f"| {bar.title} | {bar.least:.2f} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
