"""`errata reference`: build the embedded model again, measure it, read its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.shared import Json, console, emit_json, errors, reported, table
from warehouse.errors import UsageError

app = typer.Typer(help="The embedded reference model: train it again, measure it, read its card.", no_args_is_help=True)


@app.command()
@reported
def train(
    out: Annotated[Path, typer.Option(help="Folder for states, log and the finished model.")] = Path(".errata/reference"),
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; default as shipped.")] = None,
    inner: Annotated[int | None, typer.Option(help="Width of the feed-forward layers; default as shipped.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, documents and order.")] = 0,
    as_json: Json = False,
) -> None:
    """Train tokenizer and model from the repository alone. Killed at any time, it goes on from its last saved state."""
    from editors.reference.train import TrainConfig, train

    given = {"steps": steps, "inner": inner, "seed": seed}
    config = TrainConfig(**{k: v for k, v in given.items() if v is not None})
    errors.print(f"training for {config.steps} steps; progress is in {out}/log.jsonl", highlight=False)
    folder = train(out, config)
    emit_json({"model": str(folder)}) if as_json else console.print(f"trained: {folder}")


@app.command()
@reported
def evaluate(
    model: Annotated[str | None, typer.Option(help="Folder or hub id; default: the shipped weights.")] = None,
    sample: Annotated[int | None, typer.Option(help="Measure this many facts only.")] = None,
    threads: Annotated[int, typer.Option(help="Threads; 0: all cores.")] = 0,
    write_card: Annotated[bool, typer.Option("--write-card", help="Write the card beside the weights.")] = False,
    as_json: Json = False,
) -> None:
    """Exact match over all (fact, template) pairs: those trained, and those never seen."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from editors.reference.evaluate import exact_match
    from warehouse.reference import HERE

    if threads:
        torch.set_num_threads(threads)
    name = model or str(HERE / "model")
    try:
        loaded = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, attn_implementation="eager")
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load model {name!r}: {error}") from error
    result = exact_match(loaded, tokenizer, sample)
    if write_card:
        from dataclasses import asdict

        from editors.reference.card import write_card as write
        from editors.reference.train import TrainConfig
        from warehouse.reference.world import templates

        parameters = sum(p.numel() for p in loaded.parameters())
        write(Path(name), result, asdict(TrainConfig()), parameters, len(templates()))
    if as_json:
        emit_json(result.as_dict())
    else:
        table("Exact match of the reference model", list(result.as_dict()), [list(result.as_dict().values())])


@app.command()
@reported
def card(as_json: Json = False) -> None:
    """The model card of the shipped weights: what was measured, and the exact command that made them."""
    from warehouse.reference import HERE

    if as_json:
        emit_json(json.loads((HERE / "model" / "card.json").read_text(encoding="utf-8")))
    else:
        console.print((HERE / "model" / "README.md").read_text(encoding="utf-8"), markup=False, highlight=False)
