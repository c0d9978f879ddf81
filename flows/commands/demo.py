"""`errata demo`: six nights on one lineage, a naive editor beside it, and the same policy for both."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.nights import STATUS_COLUMNS, status_row
from flows.commands.shared import Json, console, emit_json, errors, reported, table
from flows.commands.stopping import at_once
from tasks.settings import configure

NAIVE_EDITOR, NAIVE_NIGHTS = "ft", 1


@reported
def demo(
    home: Annotated[Path, typer.Option(help="State folder; emptied first.")] = Path(".errata/demo"),
    editor: Annotated[str | None, typer.Option(help="Editor of the main lineage; default from the settings.")] = None,
    nights: Annotated[int, typer.Option(help="How many of the recorded nights.")] = 6,
    as_json: Json = False,
) -> None:
    """Six nights of recorded Wikidata updates on the embedded model; nothing staged, the policy decides."""
    start = time.monotonic()
    shutil.rmtree(home, ignore_errors=True)
    os.environ["ERRATA_HOME"] = str(home)
    settings = configure(editor=editor)
    from flows.nightly import nightly_refresh
    from tasks.night.ingest import source_of
    from tasks.workspace import report_folder

    names = source_of(settings).nights()[:nights]
    plan = [(n, settings.lineage, settings.editor.name) for n in names]
    plan += [(n, "naive", NAIVE_EDITOR) for n in names[:NAIVE_NIGHTS]]
    lines: list[dict[str, Any]] = []
    for night, lineage, name in plan:
        # To standard error: with --json, standard output is the document alone.
        errors.print(f"[bold]{night}[/bold] on lineage {lineage} with {name}", highlight=False)
        with at_once():
            lines.append(nightly_refresh(night=night, lineage=lineage, editor=name).model_dump(mode="json"))
    example = _example(settings)
    report = report_folder(settings, names[-1]) / "evidently.html"
    seconds = round(time.monotonic() - start, 1)
    taken_out = [one for line in lines for one in _taken_out(line)]
    if as_json:
        emit_json({"nights": lines, "taken_out": taken_out, "report": str(report), "example": example, "seconds": seconds})
        return
    table("The demo's nights", STATUS_COLUMNS, [status_row(line) for line in lines])
    if taken_out:
        table(
            "Taken out, so that the rest of the night could be promoted",
            ("night", "edit", "why"),
            [(one["night"], one["edit"], one["why"].partition(" (")[0]) for one in taken_out],
        )
    for line in lines:
        if line["verdict"] != "promote":
            console.print(f"{line['night']} on {line['lineage']} was not promoted: {_why(line)}", highlight=False)
    if example:
        console.print(f"Asked [italic]{example['prompt']}[/italic]", highlight=False)
        console.print(f"  before: {example['before']}\n  now:    {example['after']}", markup=False, highlight=False)
    console.print(f"Report: {report}\nSummary: {report.with_name('summary.md')}\n{seconds:.0f} seconds", highlight=False)


def _taken_out(line: dict[str, Any]) -> list[dict[str, str]]:
    """The edits that culprit isolation held back from a night that was then promoted, each with its evidence."""
    from tasks.isolation.culprits import HELD_BACK
    from tasks.workspace import warehouse
    from warehouse.lineages.edits import edits_of
    from warehouse.nights.intake import requests_by_id

    if line["verdict"] != "promote":
        return []
    with warehouse(configure()) as wh:
        held = [e for e in edits_of(wh, line["lineage"], line["night"]) if e.reason.startswith(HELD_BACK)]
        requests = requests_by_id(wh, [e.edit.request_id for e in held])
    found = zip(held, requests, strict=True)
    return [{"night": line["night"], "edit": f"{r.prompt} {r.target_new}", "why": e.reason} for e, r in found]


def _why(line: dict[str, Any]) -> str:
    from tasks.workspace import warehouse
    from warehouse.lineages.edits import edits_of

    with warehouse(configure()) as wh:
        edits = edits_of(wh, line["lineage"], line["night"])
    # Of the last candidate: where culprits were taken out first, the whole night has reasons of its own.
    reasons = {e.reason for e in edits if e.status == "rejected" and e.checkpoint_id == line["checkpoint_id"]}
    return " ".join(sorted(reasons)) or line["verdict"]


def _example(settings: Any) -> dict[str, str] | None:
    """One fact that production learnt, asked in wording that the edit did not use, of base and production."""
    from tasks.serving.models import at_checkpoint, base_model, head_manifest
    from tasks.workspace import store_of, warehouse
    from warehouse.lineages.edits import active_edits

    store = store_of(settings)
    manifest = head_manifest(settings, store)
    with warehouse(settings) as wh:
        active = active_edits(wh, settings.lineage)
    if manifest is None or not active:
        return None
    prompts = [r.rephrases[0] for _, r in active if r.rephrases]
    wanted = [r.target_new for _, r in active if r.rephrases]
    before = base_model(settings).generate(prompts, 10)
    with tempfile.TemporaryDirectory() as scratch:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from warehouse.checkpoints.pull import pull

        # Through the door that a server uses: pull, from_pretrained, generate.
        folder = Path(scratch) / "model"
        pull(store, settings.channel_name, folder)
        served: Any = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        fresh = at_checkpoint(settings, store, manifest.checkpoint)
        after = fresh.generate(prompts, 10)
        for p, b, a, w in zip(prompts, before, after, wanted, strict=True):
            if a.strip().startswith(w) and not b.strip().startswith(w):
                ids = tokenizer(p, return_tensors="pt")
                out = served.generate(**ids, max_new_tokens=10, do_sample=False, pad_token_id=tokenizer.eos_token_id)
                said = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
                return {"prompt": p, "before": b.strip(), "after": said.strip(), "wanted": w}
    return None
