"""Write a night's report to disk and show it in Prefect."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext

from checks.evaluation import predict
from editors.model import EditableModel
from editors.views import AtDepth, at_depth
from tasks.candidate import Candidate, describe
from tasks.night.progress import artifact_key
from tasks.reporting.report_page import night_markdown, write_evidently
from tasks.serving.models import at_checkpoint
from tasks.serving.proof import Asking
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.workspace import WarehouseCache, report_folder, store_of, warehouse
from warehouse.nights.intake import requests_by_id, verdicts_of
from warehouse.records import Manifest, Prediction, Probe
from warehouse.world.forms import told
from warehouse.world.probes import load_probe_set

log = logging.getLogger(__name__)
NUM_EXAMPLES, EXAMPLE_TOKENS = 8, 10


def _answers(
    settings: Settings, model: EditableModel, depth: int, probes: Sequence[Probe]
) -> tuple[dict[str, Prediction], dict[str, Prediction]]:
    """What the candidate and production (the model's first `depth` patches) answer."""
    cache = WarehouseCache(settings)
    with Asking(settings) as asking:
        base, candidate = asking.states(model)
        after = predict(candidate, probes, cache)
        if not depth:
            return after, predict(base, probes, cache)
        with at_depth(model, depth):
            return after, predict(asking.states(model)[1], probes, cache)


@task(name="report", **STEP)
def publish_report(settings: Settings, done: Candidate, manifest: Manifest) -> Path:
    """`summary.md` and `evidently.html` of a night; the summary also becomes the run's Prefect artifact.

    Returns:
        The path of the summary.
    """
    with warehouse(settings) as wh:
        verdicts = verdicts_of(wh, done.night)
        tonight = requests_by_id(wh, list(done.edited))
        probes = load_probe_set(wh, manifest.report.probe_set_digest).probes
    model = at_checkpoint(settings, store_of(settings), done)
    production = AtDepth(model, len(done.parent_patches))
    folder = report_folder(settings, done.night)
    write_evidently(folder, probes, *_answers(settings, model, len(done.parent_patches), probes))
    shown = tonight[:NUM_EXAMPLES]
    prompts = [r.rephrases[0] if r.rephrases else r.prompt for r in shown]
    before, after = (view.generate(prompts, EXAMPLE_TOKENS) for view in (production, model))
    examples = [
        {"prompt": told(p), "before": b, "after": a, "wanted": r.target_new}
        for p, b, a, r in zip(prompts, before, after, shown, strict=True)
    ]
    text = night_markdown(
        f"Night {done.night} on lineage {settings.lineage}: {manifest.verdict}",
        {
            "checkpoint": manifest.checkpoint.checkpoint_id,
            "parent": done.parent or "the base model",
            "editor": describe(done),
            "policy digest": manifest.decision.policy_digest,
            # Reports of releases before do not say it.
            **({"served": served} if (served := manifest.report.environment.get("served")) else {}),
            "candidate against production": "evidently.html",
        },
        verdicts,
        manifest.report,
        manifest.decision,
        examples,
    )
    path = folder / "summary.md"
    path.write_text(text, encoding="utf-8")
    # Outside a flow run (benchmarks, tests of this function) there is no server to show it to.
    if FlowRunContext.get() is not None:
        key = artifact_key(f"{settings.lineage}-{done.night}")
        create_markdown_artifact(text, key=f"summary-{key}", description="What the night did")
        rows = [
            {
                "metric": f"{r.rule.metric} {r.rule.slice}".strip(),
                "rule": f"{r.rule.op} {r.rule.threshold}",
                "value": r.score.value if r.score else None,
                "passed": r.passed,
                "on fail": r.rule.on_fail,
            }
            for r in manifest.decision.results
        ]
        create_table_artifact(rows, key=f"gate-{key}", description="Every rule of the decision")
    return path
