"""The editor of a lineage, with what it learnt before any edit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prefect import task

from editors.base import NOTHING, Corpus, Editor, Prepared
from editors.model import EditableModel
from editors.preparation import preparation_folder, prepared_for, read_card
from tasks.serving.corpus import calibration
from tasks.serving.forms import asker_of
from tasks.serving.models import base_model
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.tuning.numbers import editor_with_numbers
from tasks.workspace import warehouse

log = logging.getLogger(__name__)


def editor_of(settings: Settings, model: EditableModel) -> Editor:
    """The configured editor with its numbers for this model; see `editor_with_numbers`."""
    return editor_with_numbers(settings, model, settings.editor.name, settings.editor.overrides)


def _corpus(settings: Settings, model: EditableModel) -> Corpus:
    """What preparations read, in the forms that the bare base is asked in."""
    asker = asker_of(settings, model)
    with warehouse(settings) as wh:
        return calibration(wh, asker=asker).corpus


def preparation_of(settings: Settings, editor: Editor, model: EditableModel) -> Prepared:
    """What the editor prepared on the bare base model; made now if no earlier run left it."""
    if not editor.card.needs_preparation:
        return NOTHING
    corpus = _corpus(settings, model)
    assert not model.patches, "preparation is a function of the base model"
    return prepared_for(editor, model, corpus, settings.preparations)


def make_preparation(settings: Settings, report: Callable[[int, int, str], None] | None = None) -> dict[str, Any]:
    """Make or find the configured editor's preparation.

    Args:
        report: called with (step, steps, note) while it is made.

    Returns:
        Its card; for an editor that needs none, only its name.
    """
    model = base_model(settings)
    editor = editor_of(settings, model)
    if not editor.card.needs_preparation:
        return {"editor": editor.card.name}
    corpus = _corpus(settings, model)
    prepared_for(editor, model, corpus, settings.preparations, report)
    home = preparation_folder(editor, model, corpus, settings.preparations)
    return read_card(home) | {"folder": str(home)}


@task(name="prepare", **STEP)
def prepare(settings: Settings) -> str:
    """Make or find the preparation; returns its digest."""
    model = base_model(settings)
    prepared = preparation_of(settings, editor_of(settings, model), model)
    log.info("%s is prepared (%s)", settings.editor.name, prepared.digest[:12])
    return prepared.digest
