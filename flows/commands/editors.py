"""`errata editors`: the survey's Table 3 from the cards, and the contract suite over anybody's editor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from flows.commands.given import HELP, numbers_given
from flows.commands.shared import Json, console, emit_json, errors, reported, table
from tasks.settings import configure

if TYPE_CHECKING:
    from tasks.settings import Settings

app = typer.Typer(help="What editors there are, and the contract that each of them keeps.")
_COLUMNS = (
    "name",
    "family",
    "trained",
    "keeps architecture",
    "only (x, y)",
    "SNS",
    "BNS",
    "SSE",
    "BSE",
    "scales",
    "prepared",
    "leaves",
)


@app.callback(invoke_without_command=True)
@reported
def editors(context: typer.Context, as_json: Json = False) -> None:
    """Every editor as a row of the survey's Table 3, read from its card; `*` where it differs from the survey's row."""
    if context.invoked_subcommand is not None:
        return
    from editors.catalogue import editor_class, names
    from editors.survey import differences, row_of

    cards = [editor_class(name).card for name in names()]
    if as_json:
        emit_json([vars(c) | {"table_3": vars(row_of(c)), "differs_from_survey_in": differences(c)} for c in cards])
        return
    rows = []
    for card in sorted(cards, key=lambda c: (c.family, c.name)):
        row, differing = row_of(card), differences(card)
        marks = [
            ("yes" if getattr(row, name) else "no") + ("*" if name in differing else "")
            for name in ("training", "architecture", "only_xy", "sns", "bns", "sse", "bse", "scales")
        ]
        rows.append((card.name, card.family, *marks, "yes" if card.needs_preparation else "no", card.patch_kind))
    table("Editors", _COLUMNS, rows)
    for card in cards:
        if card.survey:
            console.print(f"* {card.name}: {card.survey}", markup=False, highlight=False)


@reported
def prepare(
    editors: Annotated[list[str] | None, typer.Argument(help="Names of editors, or `all`; default from the settings.")] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Find their numbers on this model and keep them as presets.")] = False,
    budget: Annotated[float, typer.Option(help="With --auto: minutes for all of them together.")] = 30.0,
    set_: Annotated[list[str] | None, typer.Option("--set", help=HELP)] = None,
    as_json: Json = False,
) -> None:
    """Make what editors need before their first edit, or find their numbers; cached by model, configuration and corpus.

    Safe to kill: training goes on from its last saved state, a search from its last trial. The card says what was learnt:
    losses, held-out success.
    """
    from editors.catalogue import names as all_editors

    settings = configure()
    names = all_editors() if editors == ["all"] else editors or [settings.editor.name]
    given = numbers_given(set_ or (), names)
    if auto:
        _find(settings, names, budget, given, as_json, everybody=editors == ["all"])
        return
    cards = [_prepared(configure({"editor": {"overrides": given.get(name, {})}}, editor=name), name) for name in names]
    if as_json:
        emit_json(cards[0] if len(cards) == 1 else cards)
        return
    for name, card in zip(names, cards, strict=True):
        if "digest" not in card:
            console.print(f"{name} needs no preparation")
            continue
        console.print(f"{name} is prepared: {card['digest'][:12]} ({card['seconds']} s, {card['folder']})", highlight=False)
        rows = [(figure, _short(value)) for figure, value in sorted(card["meta"].items()) if _is_figure(value)]
        if rows:
            table("What it learnt", ("figure", "value"), rows)


def _prepared(settings: Settings, name: str) -> dict[str, Any]:
    """The card of an editor's preparation, made with a bar on a terminal."""
    from tasks.serving.prepare import make_preparation

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        job = bar.add_task(f"preparing {name}", total=None)
        return make_preparation(
            settings, lambda step, total, note: bar.update(job, completed=step, total=total, description=f"{name}: {note}")
        )


def _find(
    settings: Settings,
    names: Sequence[str],
    minutes: float,
    given: Mapping[str, Mapping[str, Any]],
    as_json: bool,
    everybody: bool,
) -> None:
    """Search, a line for each trial on standard error, and show what was found.

    Of everybody, those that the model's architecture does not take are left out, which is said.
    """
    from editors.presets import fits
    from tasks.serving.models import base_model
    from tasks.tuning.numbers import find_numbers

    def say(line: str) -> None:
        errors.print(line, markup=False, highlight=False, soft_wrap=True)

    model = base_model(settings)
    if everybody and (unfit := [name for name in names if not fits(name, model)]):
        say(f"left out, since they do not edit {model.hf.config.model_type}: {', '.join(unfit)}")
        names = [name for name in names if name not in unfit]
    own = {settings.editor.name: settings.editor.overrides} if settings.editor.name in names else {}
    held = {name: {**own.get(name, {}), **given.get(name, {})} for name in names}
    found = find_numbers(
        settings,
        model,
        names,
        minutes=minutes,
        held=held,
        report=say,
    )
    if as_json:
        emit_json([f.as_record for f in found])
        return
    rows = [
        (
            f.name,
            f.how,
            *((None,) * 4 if f.best is None else (f.best.success, f.best.generalization, f.best.kept, f.best.cpu_per_edit)),
            len(f.trials),
            ", ".join(f"{field} {value}" for field, value in f.values.items()),
        )
        for f in found
    ]
    table("Numbers", ("editor", "how", "SR", "GR", "neighbours", "CPU s/edit", "trials", "numbers"), rows)
    for f in found:
        if f.why:
            console.print(f"{f.name}: scaled defaults, not tried ({f.why})", markup=False, highlight=False)
        elif not f.is_complete:
            console.print(f"{f.name}: the budget ended its search; the same command goes on", markup=False, highlight=False)


def _is_figure(value: Any) -> bool:
    """Numbers and small records of numbers; texts and templates are in the card's file."""
    if isinstance(value, dict):
        return 0 < len(value) <= 12 and all(isinstance(v, (int, float)) for v in value.values())
    return isinstance(value, (int, float)) or (isinstance(value, list) and bool(value) and isinstance(value[0], (int, float)))


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]:.4g} to {value[-1]:.4g} over {len(value)} points"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v:.3g}" for k, v in value.items())
    return f"{value:.4g}"


@app.command()
@reported
def show(
    name: Annotated[str, typer.Argument(help="An editor's name, or package.module:Class.")], as_json: Json = False
) -> None:
    """One editor's whole card: modes and why others are refused, paper, code, what ours changes, its presets."""
    from editors.catalogue import editor_class
    from editors.presets import sections

    card = editor_class(name).card
    found = vars(card) | {"presets": [key for key in sections(card.name) if key != "default"]}
    if as_json:
        emit_json(found)
        return
    table(card.title, ("field", "value"), [(key, str(value)) for key, value in found.items() if value not in ("", ())])


@app.command()
@reported
def test(
    editor: Annotated[str, typer.Argument(help="package.module:Class of your editor, or a name.")],
    as_json: Json = False,
) -> None:
    """Run the contract tests over one editor: purity, rollback, round trips, batches, generation, refusals.

    The suite lives with the sources (`tests/editors/test_contract.py`): run it in a clone with the development extras.
    """
    from editors.catalogue import editor_class
    from editors.errors import UnknownEditor

    configure()
    card = editor_class(editor).card
    try:
        import tests.editors.test_contract as suite
    except ImportError as error:
        raise UnknownEditor(f"the contract suite is not here ({error}); run this in a clone of the sources") from error
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(suite.__file__)]
    found = subprocess.run(
        command,
        env=os.environ | {"ERRATA_CONTRACT_EDITOR": editor},
        check=False,
        text=True,
        stdout=subprocess.PIPE if as_json else None,
        stderr=subprocess.STDOUT if as_json else None,
    )
    if as_json:
        emit_json({"editor": card.name, "passed": found.returncode == 0, "report": found.stdout.splitlines()[-20:]})
    elif found.returncode:
        errors.print(f"{editor} breaks the contract; `editors/README.md` says what each test asks")
    if found.returncode:
        raise typer.Exit(1)
