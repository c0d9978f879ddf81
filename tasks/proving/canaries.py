"""Choose the questions that show which checkpoint a server answers from, and what each checkpoint answers to them.

Chosen by hash, so that nobody picks what looks good; answers come from the night's own predictions where it has them.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, zip_longest
from pathlib import Path
from typing import NamedTuple

import torch

from checks.canaries import answer_in, says
from editors.asking.tokens import encode_prompts
from editors.export.plain import why_not_plain
from editors.model import EditableModel
from tasks.candidate import Candidate
from tasks.serving.forms import how_to_ask
from tasks.serving.models import at_checkpoint
from tasks.serving.plain_folder import PlainFolder, answering, base_as_served
from tasks.settings import Settings
from tasks.workspace import night_folder, store_of, warehouse
from warehouse.checkpoints.pull import pull
from warehouse.digests import canonical_json, digest_of
from warehouse.lineages.chain import ancestor_ids, checkpoint, checkpoints
from warehouse.lineages.edits import edits_of
from warehouse.lineages.reports import cached_predictions
from warehouse.records import Canary, CanarySet, Checkpoint, EvaluationReport, Prediction, Probe, Record
from warehouse.whole_files import SUFFIX, write_whole
from warehouse.world.forms import FORMS, Asker
from warehouse.world.probes import load_probe_set

log = logging.getLogger(__name__)
#: Kinds of probes that ask for an edit, in whatever words and form; `obsolete` ones for an edit that a revert took out.
OF_EDITS = frozenset({"success", "retain", "also", "rephrase", "carry_over", "obsolete"})
#: Kinds that no edit may touch.
OF_BYSTANDERS = frozenset({"neighbourhood", "relation_specificity", "unrelated", "drawdown"})
#: Tokens of an answer that the night did not have, and those that are read behind one that it had.
TOKENS, BEHIND = 12, 3
#: Checkpoints before the last one that a wrong server may be recognised as.
OLDER = 32


class _Chosen(NamedTuple):
    """A probe, the answer that the promoted checkpoint is known to give, and the checkpoint that brought its edit."""

    probe: Probe
    known: str | None
    since: str | None


class _Kept(Record):
    """What a killed promotion left: `places` is the number that was asked for."""

    places: int
    canaries: CanarySet


@dataclass(frozen=True)
class _Known:
    """Probes of the night by what they ask, and the answers that the candidate is known to give exactly, to choose by."""

    probes: Sequence[Probe]
    exact: Mapping[str, str]

    def rank(self, probe: Probe) -> tuple[bool, str]:
        """Answered exactly first: such an answer tells an edited model from another one."""
        return probe.probe_id not in self.exact, digest_of("canary", probe.probe_id)


def make_canaries(settings: Settings, done: Candidate, report: EvaluationReport, plain: PlainFolder) -> CanarySet | None:
    """The canaries of a candidate that is to be promoted; None where `serving.canaries` is 0. The same again is read.

    Half of them ask edits in force, tonight's and earlier ones in turn, each in another form; the rest bystanders. Where there
    are fewer of one, there are more of the other. What is expected is what the plain folder answers in the served dtype, as a
    server of it does.
    """
    places, path = settings.serving.canaries, night_folder(settings, done.night) / "canaries.json"
    if not places:
        return None
    if path.exists():
        kept = _Kept.model_validate_json(path.read_bytes())
        if kept.places == places and kept.canaries.checkpoint_id == done.checkpoint_id:
            return kept.canaries
    # Before the model is brought anywhere: asking how it is asked takes its patches off.
    asker = how_to_ask(settings)
    model = answering(at_checkpoint(settings, store_of(settings), done), plain)
    chosen, line = _choose(settings, done, report, places, asker, model.digest)
    made = _answered(settings, done, chosen, line, asker, model, plain.dtype)
    write_whole(path, canonical_json(_Kept(places=places, canaries=made)))
    log.info("%d canaries of checkpoint %s", len(made.canaries), done.checkpoint_id[:12])
    return made


# ---------------------------------------------------------------- which


def _choose(
    settings: Settings, done: Candidate, report: EvaluationReport, places: int, asker: Asker, digest: str
) -> tuple[list[_Chosen], tuple[str, ...]]:
    """The chosen probes, and the line of checkpoints that the candidate stands on.

    Args:
        digest: of the model that answers for the candidate.
    """
    with warehouse(settings) as wh:
        sets = [report.probe_set_digest, report.environment.get("retain_digest", "")]
        probes = [p for name in sets if name for p in load_probe_set(wh, name).probes]
        asked = [p.probe_id for p in probes]
        own_answers = cached_predictions(wh, digest, asked)
        # Where the two differ in nothing but their form, the night has asked most of the one with hooks: enough to choose by.
        held = {**cached_predictions(wh, done.checkpoint_id, asked), **own_answers}
        brought = {
            line.edit.request_id: line.checkpoint_id for line in edits_of(wh, settings.lineage) if line.status == "active"
        }
        known_line = {row.checkpoint.checkpoint_id for row in checkpoints(wh, settings.lineage)}
        line = tuple(reversed(ancestor_ids(wh, settings.lineage, done.before))) if done.before in known_line else (done.before,)
    exact, said = (
        {p.probe_id: text for p in probes if (text := _exactly(p, answers.get(p.probe_id))) is not None}
        for answers in (held, own_answers)
    )
    known = _Known(list({p.prompt: p for p in probes}.values()), exact)
    own = set(done.edited)
    edits = _edit_probes(known, own, asker)
    others = sorted((p for p in known.probes if p.kind in OF_BYSTANDERS), key=known.rank)
    num_edits = min(len(edits), max((places + 1) // 2, places - len(others)))
    since = {p.probe_id: brought.get(p.request_id or "") if p.request_id not in own else None for p in edits}
    chosen = [
        _Chosen(p, said.get(p.probe_id) if p.kind != "obsolete" else None, since[p.probe_id] or done.checkpoint_id)
        for p in edits[:num_edits]
    ]
    chosen += [_Chosen(p, said.get(p.probe_id), None) for p in others[: places - num_edits]]
    # The base stays, however long the line is.
    return chosen, (line[0], *line[1:][-OLDER:])


def _exactly(probe: Probe, prediction: Prediction | None) -> str | None:
    """The target that a prediction gave exactly; None where it gave none."""
    if prediction is None or not prediction.exact:
        return None
    return next((t for t in sorted(probe.targets, key=len, reverse=True) if prediction.text.strip().startswith(t)), None)


def _edit_probes(known: _Known, tonight: Collection[str], asker: Asker) -> list[Probe]:
    """One probe of each edit, tonight's and the others in turn; then a second one of each, and so on.

    Of an edit that is answered exactly, only what is: what it does not reach is answered as before it.
    """
    by_request: dict[str, list[Probe]] = {}
    for probe in known.probes:
        if probe.kind in OF_EDITS and probe.request_id is not None:
            by_request.setdefault(probe.request_id, []).append(probe)
    ordered = sorted(by_request, key=lambda request: digest_of("canary", request))
    turn = zip_longest([r for r in ordered if r in tonight], [r for r in ordered if r not in tonight])
    rows = [
        _in_turn(by_request[request], number, known, asker)
        for number, request in zip(count(), (r for pair in turn for r in pair if r is not None), strict=False)
    ]
    return [p for column in zip_longest(*rows) for p in column if p is not None]


def _in_turn(probes: Iterable[Probe], number: int, known: _Known, asker: Asker) -> list[Probe]:
    """An edit's probes, a form after the other, begun with another form for each edit."""

    def place(probe: Probe) -> tuple[bool, int, str]:
        inexact, digest = known.rank(probe)
        form = asker.form_of(probe.prompt)
        return inexact, (FORMS.index(form) - number) % len(FORMS) if form in FORMS else 0, digest

    ordered = sorted(probes, key=place)
    return [p for p in ordered if p.probe_id in known.exact] or ordered[:1]


# ---------------------------------------------------------------- what is answered


def _answered(
    settings: Settings,
    done: Candidate,
    chosen: Sequence[_Chosen],
    line: tuple[str, ...],
    asker: Asker,
    model: EditableModel,
    dtype: torch.dtype,
) -> CanarySet:
    known = [c.known for c in chosen if c.known is not None]
    longest = max((len(ids) for ids in encode_prompts(model.tokenizer, known)), default=0) if known else 0
    tokens = max(TOKENS, longest + BEHIND)
    said = _texts(model, [c for c in chosen if c.known is None], tokens)
    expected = [answer_in(said[c.probe.prompt]) if c.known is None else c.known for c in chosen]
    with warehouse(settings) as wh:
        parent = None if done.parent is None else checkpoint(wh, done.parent)
    before = _elsewhere(settings, _as_served(settings, done.night, parent, dtype), chosen, expected, tokens)
    base = before
    if parent is not None:
        base = _elsewhere(settings, _as_served(settings, done.night, None, dtype), chosen, expected, tokens)
    return CanarySet(
        checkpoint_id=done.checkpoint_id,
        line=line,
        max_tokens=tokens,
        canaries=tuple(
            Canary(
                kind="edit" if c.probe.kind in OF_EDITS else "bystander",
                prompt=c.probe.prompt,
                form=asker.form_of(c.probe.prompt),
                expected=answer,
                previous=previous,
                base=own,
                since=c.since,
            )
            for c, answer, previous, own in zip(chosen, expected, before, base, strict=True)
        ),
    )


def _as_served(settings: Settings, night: str, at: Checkpoint | None, dtype: torch.dtype) -> EditableModel:
    """What answers where an earlier checkpoint, or the base for None, is served in this dtype: what the store has of it."""
    store = store_of(settings)
    model = at_checkpoint(settings, store, at)
    if dtype == model.hf.dtype:
        return model
    if at is None:
        return base_as_served(settings, model, dtype)
    # Swept with the night's folder where the process is killed.
    with tempfile.TemporaryDirectory(dir=night_folder(settings, night), prefix="before.", suffix=SUFFIX) as scratch:
        folder = Path(scratch, "model")
        pull(store, at.checkpoint_id, folder, limits=settings.limits, allow_code=settings.model.trust_remote_code)
        return answering(model, PlainFolder(folder, dtype, why_not_plain(folder)))


def _elsewhere(
    settings: Settings, model: EditableModel, chosen: Sequence[_Chosen], expected: Sequence[str], tokens: int
) -> list[str | None]:
    """What another checkpoint answers where that is not what is expected; None where it is."""
    with warehouse(settings) as wh:
        held = cached_predictions(wh, model.digest, [c.probe.probe_id for c in chosen])
    same = [_exactly(c.probe, held.get(c.probe.probe_id)) == answer for c, answer in zip(chosen, expected, strict=True)]
    said = _texts(model, [c for c, is_same in zip(chosen, same, strict=True) if not is_same], tokens)
    return [
        None if is_same or says(said[c.probe.prompt], answer) else answer_in(said[c.probe.prompt], c.probe.targets)
        for c, answer, is_same in zip(chosen, expected, same, strict=True)
    ]


def _texts(model: EditableModel, chosen: Sequence[_Chosen], tokens: int) -> dict[str, str]:
    prompts = [c.probe.prompt for c in chosen]
    return dict(zip(prompts, model.generate(prompts, tokens) if prompts else [], strict=True))
