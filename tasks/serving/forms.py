"""How the configured model is asked: measured once for each base on calibration facts, kept in the home."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from checks.predictor import Question
from editors.asking.chat import chat_frame
from editors.model import EditableModel
from editors.writing import writing
from tasks.serving.models import base_model
from tasks.settings import Settings
from tasks.workspace import warehouse
from warehouse.database.connection import Reader
from warehouse.digests import canonical_json, digest_of
from warehouse.reference.general.world import wordings as shipped_wordings
from warehouse.reference.splits import is_calibration_subject
from warehouse.reference.wordings import Wordings, read_wordings
from warehouse.whole_files import write_whole
from warehouse.world.forms import COMPETENT, FEW_KNOWN, FORMS, SHOTS, Asker, Demonstration, FormName, FormRate, Forms
from warehouse.world.queries import base_facts

log = logging.getLogger(__name__)
#: Calibration facts of a relation that are asked in every form.
ASKED_EACH = 12
_KNOWN: dict[tuple[str, str], Asker] = {}


@dataclass(frozen=True)
class CalibrationSlot:
    """A subject's answers in one relation."""

    subject: str
    objects: tuple[str, ...]


def asker_of(settings: Settings, model: EditableModel) -> Asker:
    """How the model is asked: plainly where it is the embedded one or the settings say so, else as was measured.

    The first call for a base measures it, which takes a minute or two on a small one, and keeps the result in the home.

    Raises:
        NotWritten: the home is full, or may not be written to.
    """
    if settings.is_embedded or settings.model.form == "plain":
        return Asker()
    wordings = wordings_of(settings)
    said = {name: [w.statements, w.questions] for name, w in wordings.items()}
    # What a home believed before its first night stays, so one process need not read it again for each question.
    place = (str(settings.home.absolute()), digest_of(model.base_digest, settings.model.form, said))
    if place not in _KNOWN:
        with warehouse(settings) as wh:
            slots = calibration_slots(wh)
        own = {name: [[s.subject, s.objects] for s in known] for name, known in slots.items()}
        key = digest_of(model.base_digest, settings.model.form, said, own)
        path = settings.home / "forms" / f"{key[:24]}.json"
        forms = _read(path)
        if forms is None:
            forms = measure_forms(model, wordings, slots, settings.model.form)
            with writing(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, canonical_json(forms))
        _KNOWN[place] = Asker(forms, wordings)
    return _KNOWN[place]


def how_to_ask(settings: Settings) -> Asker:
    """`asker_of` the configured base; the embedded one need not be loaded for it."""
    return Asker() if settings.is_embedded else asker_of(settings, base_model(settings))


def _read(path: Path) -> Forms | None:
    try:
        return Forms.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        log.warning("%s cannot be used and is made anew: %s", path, error)
        return None


def wordings_of(settings: Settings) -> dict[str, Wordings]:
    """The shipped wordings, and those of a user's own templates file over them."""
    own = read_wordings(Path(settings.templates)) if settings.templates else {}
    return shipped_wordings() | own


def calibration_slots(wh: Reader) -> dict[str, list[CalibrationSlot]]:
    """Slots of calibration subjects by relation, in hash order; what small models can know comes first."""
    found: dict[tuple[str, str], tuple[bool, str, set[str]]] = {}
    for row in base_facts(wh):
        if is_calibration_subject(row["subject_id"]):
            own = row["source"] != "general", row["subject"], set[str]()
            found.setdefault((row["relation"], row["subject_id"]), own)[2].add(row["object"])
    slots: dict[str, list[CalibrationSlot]] = {}
    ordered = sorted(found.items(), key=lambda item: (item[0][0], item[1][0], digest_of("form", item[0][1])))
    for (relation, _), (_, subject, objects) in ordered:
        slots.setdefault(relation, []).append(CalibrationSlot(subject, tuple(sorted(objects))))
    return slots


def demonstrations_of(slots: Iterable[CalibrationSlot]) -> tuple[Demonstration, ...]:
    """The first slots with one answer each, all of them different; empty where there are too few."""
    chosen: dict[str, Demonstration] = {}
    for slot in slots:
        if len(slot.objects) == 1 and len(chosen) < SHOTS:
            chosen.setdefault(slot.objects[0], Demonstration(subject=slot.subject, object=slot.objects[0]))
    return tuple(chosen.values()) if len(chosen) == SHOTS else ()


def measure_forms(
    model: EditableModel,
    wordings: Mapping[str, Wordings],
    slots: Mapping[str, Sequence[CalibrationSlot]],
    wanted: str = "auto",
) -> Forms:
    """Ask calibration facts in every form (`wanted`: in that one alone) and keep the forms that the base is competent in.

    Two seconds for a relation on a model of 135 million weights. A base that answers next to nothing is asked plainly.
    """
    frame = chat_frame(model.tokenizer)
    demonstrations = {r: shown for r, own in slots.items() if r in wordings and (shown := demonstrations_of(own))}
    names: tuple[FormName, ...] = tuple(f for f in FORMS if (f != "chat" or frame) and wanted in ("auto", f))
    every = Forms(model_digest=model.base_digest, names=names, chat=frame or ("", ""), demonstrations=demonstrations)
    if wanted != "auto":
        return every
    log.info("measuring in which of %s the base answers what it knows", ", ".join(names))
    asker = Asker(every, wordings)
    rates: list[FormRate] = []
    for relation, shown in sorted(demonstrations.items()):
        told = {d.subject for d in shown}
        asked = [s for s in slots[relation] if s.subject not in told][:ASKED_EACH]
        right = {form: _right(model, asker, form, wordings[relation], asked) for form in names}
        known = sum(any(right[form][i] for form in names) for i in range(len(asked)))
        rates += [FormRate(relation=relation, form=f, right=sum(right[f]), known=known, asked=len(asked)) for f in names]
    totals = [
        FormRate(
            relation="",
            form=form,
            right=sum(r.right for r in rates if r.form == form),
            known=sum(r.known for r in rates if r.form == form),
            asked=sum(r.asked for r in rates if r.form == form),
        )
        for form in names
    ]
    # In one relation a form may serve that does not in most.
    good = {r.form for r in (*totals, *rates) if r.known >= FEW_KNOWN and r.share >= COMPETENT}
    found = every.model_copy(update={"names": tuple(f for f in names if f in good), "rates": (*totals, *rates)})
    log.info("asked in %s (%s)", ", ".join(found.names) or "plain", found.describe())
    return found


def _right(
    model: EditableModel, asker: Asker, form: FormName, wordings: Wordings, slots: Sequence[CalibrationSlot]
) -> list[bool]:
    questions = [Question(asker.prompt(form, wordings, 0, s.subject), o) for s in slots for o in s.objects]
    exact = iter([answer.exact for answer in model.score(questions)])
    return [any([next(exact) for _ in s.objects]) for s in slots]
