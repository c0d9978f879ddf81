"""Do the shapes of the literature hold here? Each claim beside what was measured, then the survey's Table 4 and Figure 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.quality.rows import BenchmarkRow, Measured, with_points

#: SR, GR, DD in percent on zsRE, then on CounterFact: the survey's Table 4 (GPT-J, single batches, not in sequence).
TABLE_4 = {
    "ft": ((54.70, 49.20, 62.76), (99.90, 97.53, 98.98)),
    "knowledge_editor": ((6.60, 7.80, 5.82), (13.40, 11.00, 5.62)),
    "mend": ((45.60, 48.00, 11.79), (73.80, 74.20, 96.25)),
    "rome": ((99.18, 94.90, 0.0), (99.80, 86.63, 0.0)),
    "memit": ((99.23, 87.16, 0.0), (99.90, 73.13, 0.0)),
    "serac": ((90.16, 89.96, 0.1), (99.78, 99.41, 1.11)),
    "t_patcher": ((97.12, 94.95, 3.76), (100.0, 83.98, 91.63)),
}
#: What the survey's Figure 2 (CounterFact, GPT-J) shows of each editor as its batches grow to 10,000 edits. ROME edits one
#: fact after the other there, so its sequences are beside it here.
FIGURE_2 = {
    "mend": ("batch", "well up to ten edits, then down; almost no SR before 1,000"),
    "rome": ("sequential", "well up to ten edits, then down; almost no SR before 1,000"),
    "memit": ("batch", "well in large batches"),
}

SEQUENCES = ("sequential", "sequential-batch")


@dataclass(frozen=True)
class Measurements:
    """Rows of modifications that have scores, by editor, mode and number of edits."""

    rows: Sequence[BenchmarkRow]

    @classmethod
    def of(cls, rows: Sequence[BenchmarkRow], *splits: str) -> Measurements:
        """Those of so named splits."""
        return cls([r for r in rows if r.task == "modification" and r.split in splits and r.scores])

    def in_sequence(self, *editors: str) -> dict[str, float | None]:
        """SRR of each of the editors, then DD of each, after the longest sequence that all of them went through.

        A sequence of which a guard let nothing through is none.
        """
        runs = [
            {
                (r.edits, r.mode): r.scores
                for r in self.rows
                if r.editor == editor and r.mode in SEQUENCES and r.refused < r.edits
            }
            for editor in editors
        ]
        common = set.intersection(*(set(found) for found in runs))
        if not common:
            return {f"{editor} in sequence": None for editor in editors}
        longest = max(common)
        found: dict[str, float | None] = {}
        for name, key in (("SRR", "SRR"), ("DD", "DD/known")):
            for editor, scores in zip(editors, (run[longest] for run in runs), strict=True):
                found[f"{editor} {name} after {longest[0]} in sequence"] = scores[key].value if key in scores else None
        return found

    def value(self, editor: str, mode: str, score: str, held: int | None = None) -> float | None:
        """The score of the largest matching run, or of one that holds so many edits; None where nobody measured it."""
        found = self.score(editor, mode, score, held)
        return None if found is None else found.value

    def score(self, editor: str, mode: str, score: str, held: int | None = None) -> Measured | None:
        """As `value`, with its interval."""
        found = [r for r in self.rows if r.editor == editor and r.mode == mode and held in (None, _held(r))]
        return max(found, key=lambda r: (r.edits, r.created_at)).scores.get(score) if found else None


@dataclass(frozen=True)
class Shape:
    """A claim of the literature. `numbers` are what it rests on; `holds` judges them once all are there."""

    claim: str
    numbers: Callable[[Measurements], dict[str, float | None]]
    holds: Callable[[dict[str, float]], bool]


def _sequence(editor: str) -> Callable[[Measurements], dict[str, float | None]]:
    return lambda m: {f"{editor} SR single": m.value(editor, "single", "SR"), **m.in_sequence(editor)}


def _falls(found: dict[str, float]) -> bool:
    single, kept, lost = found.values()
    return kept < single - 0.2 or lost > 0.2


def _decays(found: dict[str, float]) -> bool:
    single, kept, _ = found.values()
    return kept < single - 0.02


def _longer(editor: str) -> Callable[[Measurements], dict[str, float | None]]:
    return lambda m: m.in_sequence(editor, "memit")


def _lasts(found: dict[str, float]) -> bool:
    own, other, lost, other_lost = found.values()
    return own >= other and lost <= other_lost


def _drawdowns(mode: str, where: str) -> Callable[[Measurements], dict[str, float | None]]:
    """DD of `ft`, which is judged, with 100 edits, then of the three others that lose most."""

    def found(m: Measurements) -> dict[str, float | None]:
        others = {r.editor for r in m.rows} - {"ft"}
        lost = {e: value for e in others if (value := m.value(e, mode, "DD/known", 100)) is not None}
        worst = sorted(lost, key=lambda e: (-lost[e], e))[:3]
        judged = {"ft": m.value("ft", mode, "DD/known", 100)}
        return {f"{e} DD {where} 100": value for e, value in (judged | {e: lost[e] for e in worst}).items()}

    return found


def _worst_first(found: dict[str, float]) -> bool:
    first, *_ = found.values()
    return first >= max(found.values())


SHAPES = (
    Shape("ROME falls apart in sequence", _sequence("rome"), _falls),
    Shape("MEND falls apart in sequence", _sequence("mend"), _falls),
    Shape("MEMIT holds in batch", lambda m: {"memit SR single": m.value("memit", "single", "SR"),
                                             "memit SR of a batch of 100": m.value("memit", "batch", "SR", 100)},
          lambda f: f["memit SR of a batch of 100"] >= f["memit SR single"] - 0.05),
    Shape("MEMIT decays in sequence", _sequence("memit"), _decays),
    Shape("AlphaEdit lasts longer than MEMIT", _longer("alphaedit"), _lasts),
    Shape("UltraEdit lasts longer than MEMIT", _longer("ultraedit"), _lasts),
    Shape("Fine-tuning without constraint has the worst drawdown of a batch", _drawdowns("batch", "of a batch of"),
          _worst_first),
    Shape("Fine-tuning without constraint has the worst drawdown in sequence", _drawdowns("sequential", "after"),
          _worst_first),
    Shape("GRACE keeps locality", lambda m: {"grace locality": m.value("grace", "single", "locality/neighbourhood")},
          lambda f: f["grace locality"] >= 0.98),
    Shape("GRACE does not generalise", lambda m: {"grace SR": m.value("grace", "single", "SR"),
                                                  "grace GR": m.value("grace", "single", "GR")},
          lambda f: f["grace GR"] < f["grace SR"] - 0.1),
    Shape("KE fails beyond a few successive edits", _sequence("knowledge_editor"), _falls),
)  # fmt: skip


def shapes_markdown(rows: Sequence[BenchmarkRow]) -> str:
    """Three tables: each claim with its numbers and whether it holds; the survey's Table 4; its Figure 2."""
    measured = Measurements(with_points(Measurements.of(rows, "report", "report-first").rows))
    lines = ["## Shapes of the literature", "", "| claim | measured here | holds |", "| --- | --- | --- |"]
    for shape in SHAPES:
        numbers = shape.numbers(measured)
        known = {name: value for name, value in numbers.items() if value is not None}
        shown = ", ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in numbers.items())
        verdict = ("yes" if shape.holds(known) else "no") if len(known) == len(numbers) else "not measured"
        lines.append(f"| {shape.claim} | {shown} | {verdict} |")
    lines += [
        "",
        "Success, generalization and drawdown of edits that are not in sequence, beside the survey's Table 4 (GPT-J; to be "
        "matched in kind, not in value):",
        "",
        "| editor | here: SR / GR / DD | zsRE | CounterFact |",
        "| --- | --- | --- | --- |",
    ]
    for editor, (zsre, counterfact) in TABLE_4.items():
        own = [measured.value(editor, "single", name) for name in ("SR", "GR", "DD/known")]
        here = " / ".join("-" if v is None else f"{100 * v:.1f}" for v in own)
        cells = (" / ".join(f"{v:g}" for v in theirs) for theirs in (zsre, counterfact))
        lines.append(f"| `{editor}` | {here} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_figure_2(measured), ""])


def _figure_2(measured: Measurements) -> list[str]:
    """SR, GR and neighbourhood by the number of edits in the model, beside what the survey's figure shows."""
    runs: dict[str, dict[int, BenchmarkRow]] = {}
    for editor, (mode, _) in FIGURE_2.items():
        runs[editor] = {_held(r): r for r in measured.rows if r.editor == editor and r.mode in ("single", mode)}
    sizes = sorted({size for found in runs.values() for size in found})
    if not sizes:
        return []
    lines = [
        "Edits held at once, beside the survey's Figure 2 (GPT-J, CounterFact): SRR / GRR / neighbourhood in percent. MEND and "
        "MEMIT edit in one batch, ROME one fact after the other.",
        "",
        f"| editor | {' | '.join(str(size) for size in sizes)} | the survey's figure |",
        f"| --- | {'--- | ' * len(sizes)}--- |",
    ]
    for editor, found in runs.items():
        cells = [_three(found[size]) if size in found else "-" for size in sizes]
        lines.append(f"| `{editor}` | {' | '.join(cells)} | {FIGURE_2[editor][1]} |")
    return lines


def _three(row: BenchmarkRow) -> str:
    if row.refused == row.edits:
        return "refused"
    found = [row.scores.get(key) for key in ("SRR", "GRR", "locality/neighbourhood")]
    return " / ".join("-" if s is None or s.value is None else f"{100 * s.value:.1f}" for s in found)


def _held(row: BenchmarkRow) -> int:
    """Edits that the model holds at once."""
    return row.edits if row.mode in SEQUENCES else row.batch_size
