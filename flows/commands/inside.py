"""`errata locate` and `errata footprint`: where a fact is recalled, and where edits changed the weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from flows.commands.shared import Json, console, emit_json, errors, numbers_of, progress_of, reported, table
from tasks.settings import Settings, configure
from warehouse.errors import UsageError

if TYPE_CHECKING:
    # torch is loaded by the commands that need it.
    from tasks.inspecting.footprint import EditFootprint

Checkpoint = Annotated[str, typer.Argument(help="base, production, a channel, or the start of a checkpoint id.")]


@reported
def locate(
    subject: Annotated[str | None, typer.Argument(help="Subject, as the warehouse labels it.")] = None,
    relation: Annotated[str | None, typer.Argument(help="Property, such as P19.")] = None,
    checkpoint: Annotated[str, typer.Option(help="base, production, a channel, or the start of an id.")] = "base",
    answer: Annotated[str | None, typer.Option(help="Answer to trace; default: what the model says.")] = None,
    samples: Annotated[int, typer.Option(help="Draws of the noise.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Folder for locate.md, locate.svg and locate.json.")] = None,
    separability: Annotated[
        bool, typer.Option("--separability", help="Instead: layer by layer, can subjects be told apart (for the ledger)?")
    ] = False,
    subjects: Annotated[int, typer.Option(help="With --separability: subjects of the warehouse that are asked.")] = 200,
    layers: Annotated[str | None, typer.Option(help="With --separability: 0,1,2; default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Where a fact is recalled: causal tracing as a heat map, integrated-gradient neurons, Hit@k of entity and fact.

    It does not tell where to edit (Hase et al. 2023): choose layers by benchmark. With --separability no fact is needed:
    for each layer of the base model, the share of subjects whose last token a slot could tell from everything else.
    """
    settings = configure()
    if separability:
        _separability(settings, subjects, numbers_of("--layers", layers) if layers else [], as_json)
        return
    if subject is None or relation is None:
        raise UsageError("locate needs SUBJECT and RELATION, or --separability")
    from tasks.inspecting.locate import locate, write_located

    with Progress(console=errors, transient=True, disable=not sys.stderr.isatty()) as bar:
        job = bar.add_task("tracing", total=1)
        found = locate(
            settings,
            subject,
            relation,
            checkpoint=checkpoint,
            answer=answer,
            samples=samples,
            progress=lambda done, total: bar.update(job, completed=done, total=total),
        )
    page = write_located(found, out or settings.reports / "locate" / f"{relation}-{subject.replace('/', '_')}")
    if as_json:
        emit_json(found.model_dump(mode="json") | {"page": str(page)})
        return
    console.print(
        f"{found.prompt} [bold]{found.answer}[/bold]: probability {found.clean:.3f}, {found.corrupted:.3f} with "
        "the subject blurred",
        highlight=False,
    )
    table(
        "States that bring it back",
        ("restored", "token", "layer", "brought back"),
        [(site, p.text, p.layer, p.effect) for site, p in found.peaks.items()],
    )
    keys = ("entity@10", "entity@50", "fact@10", "fact@50")
    table(
        "Layers",
        ("layer", "neurons", *keys),
        [(i, total, *(found.hits[k][i] for k in keys)) for i, total in enumerate(found.neurons_by_layer)],
    )
    console.print(f"figure and page: {page}", highlight=False)


def _separability(settings: Settings, subjects: int, layers: list[int], as_json: bool) -> None:
    from tasks.inspecting.separability import measure_separability

    with progress_of("separability") as progress:
        found = measure_separability(settings, subjects=subjects, layers=layers, progress=progress)
    if as_json:
        emit_json(found.model_dump(mode="json"))
        return
    title = f"{found.subjects} subjects of {found.model}, {found.wordings} wordings each, half of them unseen"
    columns = ("layer", "detector", "separable", "own", "own, worst tenth", "foreign", "foreign, worst tenth")
    table(
        title,
        columns,
        [
            (row.layer, name, d.separable, d.own, d.own_low, d.foreign, d.foreign_high)
            for row in found.layers
            for name, d in (("key", row.key), ("filter", row.filter))
        ],
    )
    best = found.best
    console.print(
        f"Filters separate most at layer {best.layer} ({best.filter.separable:.1%}). An earlier layer leaves its "
        "value more layers to work through: of layers that separate alike, benchmark the earlier first.",
        highlight=False,
    )


@reported
def footprint(checkpoint: Checkpoint = "production", as_json: Json = False) -> None:
    """Where the edits of a checkpoint lie: changed weights (size, share, effective rank), or slots beside the weights."""
    settings = configure()
    from tasks.inspecting.footprint import edit_footprint

    found = edit_footprint(settings, checkpoint)
    if as_json:
        emit_json(found.model_dump(mode="json"))
    else:
        show_footprint(found, f"Changes of {checkpoint}")


def show_footprint(found: EditFootprint, title: str) -> None:
    """Print weights and slots; where no weight differs, say so and where the edits are instead."""
    if found.weights:
        table(
            title,
            ("parameter", "shape", "norm / base", "entries", "effective rank", "spectral / base"),
            [
                (f.parameter, "x".join(map(str, f.shape)), f.norm_ratio, f.changed, f.effective_rank, f.spectral_ratio)
                for f in found.weights
            ],
        )
    else:
        instead = "the edits are slots beside a layer" if found.slots else "memories and texts change none"
        console.print(f"No weight differs: {instead}.", highlight=False)
    if found.slots:
        table(
            "Slots",
            ("beside", "slots", "edits", "added", "changed", "removed", "median norm"),
            [(s.site, s.slots, s.edits, s.added, s.changed, s.removed, s.median_norm) for s in found.slots],
        )
