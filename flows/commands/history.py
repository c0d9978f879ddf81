"""`errata log`, `show`, `diff`, `blame`: what is in a checkpoint, and who put it there."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.inside import show_footprint
from flows.commands.shared import Json, console, emit_json, reported, table
from tasks.settings import Settings, configure

Lineage = Annotated[str | None, typer.Option(help="Lineage; default from the settings.")]
Name = Annotated[str, typer.Argument(help="base, production, a channel, or the start of a checkpoint id.")]


@reported
def log(lineage: Lineage = None, as_json: Json = False) -> None:
    """The lineage as a graph, one line a checkpoint, newest first; `x` stands beside the chain that is served."""
    from tasks.workspace import warehouse
    from warehouse.lineages.history import log_lines

    settings = configure(lineage=lineage)
    with warehouse(settings) as wh:
        lines = log_lines(wh, settings.lineage)
    if as_json:
        emit_json([line.model_dump(mode="json") for line in lines])
        return
    for line in lines:
        scores = " ".join(f"{name} {value:.3f}" for name, value in line.scores.items() if value is not None)
        graph, marks = ("| x" if line.off_chain else "*  "), f" ({', '.join(line.marks)})" if line.marks else ""
        made = f"{line.edits} edits by {line.editor}, {line.in_force} in force" if line.edits else "no edit"
        console.print(
            f"{graph} {line.checkpoint_id[:12]}{marks} {line.night}, {line.verdict}: {made}  {scores}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _id(settings: Settings, name: str) -> str:
    """The id that the warehouse keeps for a name; the base has one of its own."""
    from tasks.serving.checkpoints import find_checkpoint
    from tasks.workspace import warehouse
    from warehouse.errors import NotFound
    from warehouse.lineages.chain import checkpoints

    found = find_checkpoint(settings, name)
    if found is not None:
        return found.checkpoint_id
    with warehouse(settings) as wh:
        for row in checkpoints(wh, settings.lineage):
            if not row.checkpoint.patch_digests:
                return row.checkpoint.checkpoint_id
    raise NotFound(f"lineage {settings.lineage!r} has no checkpoint yet; run `errata refresh`")


@reported
def show(checkpoint: Name = "production", lineage: Lineage = None, as_json: Json = False) -> None:
    """One checkpoint: its facts in force, its scores, the rules that it met or failed, what a serving engine has to know."""
    from tasks.proving.engine import engine_lines
    from tasks.workspace import store_of, warehouse
    from warehouse.checkpoints.manifests import read_manifest
    from warehouse.lineages.chain import checkpoints
    from warehouse.lineages.history import facts_in_force, scores_of
    from warehouse.lineages.reports import decision_of, reports_after

    settings = configure(lineage=lineage)
    name = _id(settings, checkpoint)
    with warehouse(settings) as wh:
        row = next(r for r in checkpoints(wh, settings.lineage) if r.checkpoint.checkpoint_id == name)
        facts, scores = facts_in_force(wh, settings.lineage, name), scores_of(wh, row)
        reports = reports_after(wh, name, before=row.checkpoint.parent)
        decision = decision_of(wh, reports[-1].report_id) if reports else None
    # Reports of releases before do not say.
    served = reports[-1].environment.get("served") if reports else None
    # The base has no manifest, and a rejected candidate is served by nobody.
    is_served = row.verdict == "promote" and row.manifest_digest is not None
    manifest = read_manifest(store_of(settings), name, expected_digest=row.manifest_digest) if is_served else None
    engine = manifest and manifest.engine
    if as_json:
        emit_json(
            {
                "checkpoint": row.checkpoint.model_dump(mode="json"),
                "night": row.night,
                "verdict": row.verdict,
                "served": served,
                "scores": scores,
                "facts": [f.model_dump(mode="json") for f in facts],
                "engine": engine.model_dump(mode="json") if engine else None,
                "canaries": manifest.canaries if manifest else None,
                "decision": decision.model_dump(mode="json") if decision else None,
            }
        )
        return
    console.print(f"checkpoint {name} of night {row.night or 'base'}: {row.verdict}", highlight=False)
    console.print(f"parent {row.checkpoint.parent or 'none'}, {len(row.checkpoint.patch_digests)} patches", highlight=False)
    if served is not None:
        console.print(f"served: {served}", highlight=False)
    table(
        f"{len(facts)} facts in force",
        ("subject", "relation", "answer", "was", "night", "edit"),
        [(f.subject, f.relation, f.target_new, f.target_true, f.night, f.edit_id[:12]) for f in facts],
    )
    if manifest is not None and (lines := engine_lines(manifest)):
        table("For a serving engine", ("what", "which"), lines)
    if decision is not None:
        rows = [(r.rule.metric, r.rule.slice, "yes" if r.passed else "no", r.explanation) for r in decision.results]
        table("Rules", ("metric", "slice", "passed", "why"), rows)


@reported
def diff(before: Name, after: Name = "production", lineage: Lineage = None, as_json: Json = False) -> None:
    """What changed between two checkpoints: facts, scores, and where the weights or slots did."""
    from tasks.inspecting.footprint import edit_footprint
    from tasks.workspace import warehouse
    from warehouse.lineages.history import difference

    settings = configure(lineage=lineage)
    ids = _id(settings, before), _id(settings, after)
    with warehouse(settings) as wh:
        found = difference(wh, settings.lineage, *ids)
    places = edit_footprint(settings, after, since=before)
    if as_json:
        emit_json(found.model_dump(mode="json") | places.model_dump(mode="json"))
        return
    for title, facts in (("Added", found.added), ("Changed", found.changed), ("Retracted", found.retracted)):
        if facts:
            table(
                f"{title}: {len(facts)}",
                ("subject", "relation", before[:12], after[:12]),
                [(f.subject, f.relation, f.before, f.after) for f in facts],
            )
    names = sorted({*found.scores_before, *found.scores_after})
    table(
        "Scores",
        ("score", before[:12], after[:12]),
        [(n, found.scores_before.get(n), found.scores_after.get(n)) for n in names],
    )
    show_footprint(places, "Weights")


@reported
def blame(
    subject: Annotated[str, typer.Argument(help="Subject: its label or its id.")],
    relation: Annotated[str, typer.Argument(help="Property, such as P19.")],
    lineage: Lineage = None,
    as_json: Json = False,
) -> None:
    """Which update, night, edit and decision gave the model its answer; earlier ones of the same slot below."""
    from tasks.workspace import warehouse
    from warehouse.lineages.history import blame
    from warehouse.world.forms import told

    settings = configure(lineage=lineage)
    with warehouse(settings) as wh:
        found = blame(wh, settings.lineage, subject, relation)
    if as_json:
        emit_json([b.model_dump(mode="json") for b in found])
        return
    for one in found:
        fact = one.fact
        state = "in force" if one.in_force else f"not in force ({one.status})"
        console.print(f"{told(fact.prompt)} {fact.target_new}  [{state}]", markup=False, highlight=False)
        table(
            "",
            ("what", "which"),
            [
                ("night", fact.night),
                ("update records", ", ".join(one.records)),
                ("source revisions", ", ".join(one.revisions)),
                ("verdict", f"{one.verdict}: {one.sentence}"),
                ("request", fact.request_id),
                ("edit", fact.edit_id),
                ("editor", fact.editor),
                ("patch", fact.patch_digest),
                ("checkpoint", fact.checkpoint_id),
                ("decision", f"{one.decided} ({one.decision_id})" if one.decision_id else None),
                ("before", fact.target_true),
            ],
        )
