"""Which general facts the configured model knows: asked once for each base, in every form that it is competent in."""

from __future__ import annotations

from collections.abc import Callable

from checks.predictor import Question
from editors.model import EditableModel
from tasks.serving.forms import asker_of
from tasks.settings import Settings
from tasks.workspace import warehouse
from warehouse.world.forms import Asker
from warehouse.world.general import KnownFact, general_slots, put_known

#: Slots that are asked at once and then kept: what a killed run has asked stays.
AT_ONCE = 64
#: Slots of a relation that a night asks before it needs bystanders; `errata world known` asks all.
FOR_A_NIGHT = 60


def ask_known(
    settings: Settings,
    model: EditableModel,
    *,
    each: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Asker:
    """Ask the base about the general facts that it was not asked for yet; what it answered is kept in the warehouse.

    Args:
        each: at most so many slots of a relation; 0: all.
        progress: called with (slots asked, slots to ask).

    Returns:
        How the model is asked; plainly for the embedded model, which knows its own world and is asked nothing here.
    """
    asker = asker_of(settings, model)
    if settings.is_embedded:
        return asker
    digest = model.base_digest
    with warehouse(settings) as wh:
        slots = [s for s in general_slots(wh, digest, each) if s["relation"] in asker.wordings or asker.is_plain]
    for at in range(0, len(slots), AT_ONCE):
        piece = slots[at : at + AT_ONCE]
        asked = [
            (slot, form or "plain", prompt)
            for slot in piece
            for prompt in asker.ask(slot["relation"], slot["subject"], slot["prompt"])
            for form in (asker.form_of(prompt),)
        ]
        answers = iter(model.score([Question(prompt, o) for slot, _, prompt in asked for o in slot["objects"]]))
        found = [
            KnownFact(
                subject_id=slot["subject_id"],
                relation=slot["relation"],
                form=form,
                correct=any([next(answers).exact for _ in slot["objects"]]),
            )
            for slot, form, _ in asked
        ]
        with warehouse(settings) as wh:
            put_known(wh, digest, found)
        if progress:
            progress(at + len(piece), len(slots))
    return asker
