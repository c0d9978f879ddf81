"""What people read after a night: a Markdown summary and an Evidently page of candidate against production."""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from checks.summary import markdown_summary
from warehouse.records import EvaluationReport, GateDecision, Prediction, Probe, Verdict

log = logging.getLogger(__name__)


def answers_frame(probes: Sequence[Probe], predictions: Mapping[str, Prediction]) -> pd.DataFrame:
    """One row a probe: its kind, whether the answer was right, and how sure the model was."""
    rows = [(p.kind, predictions[p.probe_id]) for p in probes if p.probe_id in predictions]
    return pd.DataFrame(
        {
            "kind": [kind for kind, _ in rows],
            "answer": ["right" if p.exact else "wrong" for _, p in rows],
            "token_accuracy": [p.token_accuracy for _, p in rows],
            "log_prob": [p.log_prob for _, p in rows],
        }
    )


def write_evidently(
    folder: Path, probes: Sequence[Probe], candidate: Mapping[str, Prediction], production: Mapping[str, Prediction]
) -> Path:
    """`evidently.html` and `evidently.json`: the candidate's answers held against production's.

    The record and the picture only: Evidently rounds, so no decision is taken from it.
    """
    # Imported here: seconds of import that only a report needs.
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import CategoryCount, MeanValue, QuantileValue, RowCount, UniqueValueCount, ValueDrift

    definition = DataDefinition(categorical_columns=["kind", "answer"], numerical_columns=["token_accuracy", "log_prob"])
    current, reference = answers_frame(probes, candidate), answers_frame(probes, production)
    report = Report(
        [
            RowCount(),
            CategoryCount(column="answer", category="right"),
            UniqueValueCount(column="kind"),
            MeanValue(column="token_accuracy"),
            MeanValue(column="log_prob"),
            QuantileValue(column="log_prob", quantile=0.05),
            ValueDrift(column="answer"),
            ValueDrift(column="log_prob"),
        ]
    )
    snapshot = report.run(
        Dataset.from_pandas(current, data_definition=definition),
        Dataset.from_pandas(reference, data_definition=definition),
    )
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "evidently.html"
    snapshot.save_html(str(page))
    (folder / "evidently.json").write_text(snapshot.json(), encoding="utf-8")
    return page


def counted(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """How many records ended in each verdict and reason."""
    frame = pd.DataFrame({"verdict": [v.verdict for v in verdicts], "reason": [v.reason for v in verdicts]})
    return frame.value_counts().reset_index(name="records").sort_values(["verdict", "records"], ascending=[True, False])


def night_markdown(
    title: str,
    lines: Mapping[str, object],
    verdicts: Sequence[Verdict],
    report: EvaluationReport | None,
    decision: GateDecision | None,
    examples: Sequence[Mapping[str, str]] = (),
) -> str:
    """The summary of a night: what came, what was done, what was measured, what was decided and why."""
    parts = [f"# {title}", "", *(f"- {name}: {value}" for name, value in lines.items()), ""]
    if verdicts:
        parts += ["## Records", "", "| verdict | reason | records |", "|---|---|---|"]
        parts += [f"| {row['verdict']} | {row['reason']} | {row['records']} |" for row in counted(verdicts).to_dict("records")]
        held = [v for v in verdicts if v.verdict in ("reject", "quarantine")]
        parts += ["", "Refused or held:", "", *(f"- `{v.record_id}` {cell(v.sentence)}" for v in held), ""]
    if examples:
        parts += ["## Questions", "", "| question | before | after | wanted |", "|---|---|---|---|"]
        parts += [
            f"| {cell(e['prompt'])} | {cell(e['before'])} | {cell(e['after'])} | {cell(e['wanted'])} |" for e in examples
        ] + [""]
    if report is not None and decision is not None:
        parts += ["## Measured and decided", "", markdown_summary(report, decision)]
    return "\n".join(parts).rstrip() + "\n"


def cell(text: str) -> str:
    """Text from records and models, made safe for a Markdown table and for HTML."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")[:300]
