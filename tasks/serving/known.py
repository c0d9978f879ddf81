"""Which general facts the configured model knows: asked once for each base, in every form that it is competent in."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from checks.predictor import Question
from tasks.serving.forms import asker_of
from tasks.serving.models import base_model
from tasks.settings import Settings
from tasks.workspace import warehouse
from warehouse.records import Record
from warehouse.world.forms import PLAINLY, Asker
from warehouse.world.general import KnownFact, general_slots, known_counts, put_known

#: Slots that are asked at once and then kept: what a killed run has asked stays.
AT_ONCE = 64
#: Slots of a relation that a night asks before it needs bystanders; `errata world known` asks all.
FOR_A_NIGHT = 60


class KnownRelation(Record):
    """How many facts of a relation a model was asked for and knows: in any form, and in each."""

    relation: str
    label: str
    asked: int
    known: int
    forms: dict[str, int] = Field(default_factory=dict)


def known_table(settings: Settings) -> list[KnownRelation]:
    """What the configured base knows of the general facts that it was asked for; empty for the embedded one."""
    if settings.is_embedded:
        return []
    digest = base_model(settings).base_digest
    with warehouse(settings) as wh:
        rows = known_counts(wh, digest)
    found: dict[str, KnownRelation] = {}
    for row in rows:  # of a relation the row over all forms comes first
        if not row["form"]:
            own = KnownRelation(relation=row["relation"], label=row["label"], asked=row["asked"], known=row["correct"])
            found[row["relation"]] = own
        else:
            found[row["relation"]].forms[row["form"]] = row["correct"]
    return list(found.values())


def ask_known(
    settings: Settings,
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
    if settings.is_embedded:
        return PLAINLY
    model = base_model(settings)
    asker = asker_of(settings, model)
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
