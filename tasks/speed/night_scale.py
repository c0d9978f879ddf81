"""What a night's evaluation costs with few and with many edits in force, most of it proved from the nights before.

Edits are made up: names of two of the world's subjects joined, a filter fitted to the name in two wordings as the ledger fits
its own, a random value. Standing probes are the world's subjects in the wordings of its relations. The nights before tonight
are no part of what is measured; what they keep on the disk is read anew, as tonight's process reads it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from checks.evaluation import evaluate, predict
from editors.exact import on_grid
from editors.ledger.ledger import LedgerConfig
from editors.ledger.subject_filter import SubjectSpace, subject_states
from editors.model import EditableModel
from editors.patches.slots import Slot, SlotBook, SlotPatch, slots_name
from editors.preparation import prepared_for
from editors.presets import load_editor
from editors.proof.folder import asked_alone, kept_proofs
from editors.proof.kept_rivals import keep_rivals, recall_rivals, rivals_file
from editors.proof.proved import Counts, Proved
from tasks.serving.corpus import calibration
from tasks.speed.case import BenchContext, Case, Comparison, Meter, Once
from warehouse.database.connection import Warehouse
from warehouse.probe_identity import make_probe, make_probe_set
from warehouse.questions import Question
from warehouse.records import Probe, ProbeKind, ProbeSet
from warehouse.world.queries import subjects_beside
from warehouse.world.templates import templates_of

#: Bytes of proofs that are kept: all.
NO_LIMIT = 1 << 40
#: Of a random value, relative to the states that it is added to.
VALUE_SHARE = 0.3


@dataclass(frozen=True)
class _Night:
    """One night: what was in force before it, and what it asks.

    Attributes:
        folder: what the nights before kept.
    """

    edits: int
    folder: Path
    before: SlotPatch
    tonight: SlotPatch
    probes: ProbeSet
    retain: ProbeSet


def night_scale(context: BenchContext) -> Case:
    """Evaluation of a night for each number of edits in force of `context.sizes.scale_edits`."""
    sizes, model = context.sizes, context.model
    editor = load_editor("ledger", model, {}, context.settings.presets)
    config = editor.config
    assert isinstance(config, LedgerConfig)
    prepared = prepared_for(editor, model, calibration(context.world).corpus, context.settings.preparations)
    space = SubjectSpace(prepared.tensors["mean"], prepared.tensors["precision"], prepared.tensors["bank"])
    site = model.anatomy.mlp.format(layer=config.layer)
    names, wordings = subjects_beside(context.world, ()), _wordings(context.world)
    made_up = [f"{a.split()[0]} {b.split()[-1]}" for a, b in zip(names, reversed(names), strict=True)]
    made_up = list(dict.fromkeys([*made_up, *(f"{a} {b.split()[-1]}" for a, b in zip(names, names[7:], strict=False))]))
    most = max(sizes.scale_edits) + sizes.scale_tonight
    subjects = made_up[:most]
    slots = _slots(model, site, space, config, subjects, wordings[:2])
    standing = _questions("drawdown", names, wordings, sizes.scale_probes)
    fresh = _questions("neighbourhood", made_up[::-1], wordings[2:], 3 * sizes.scale_tonight)
    root = context.settings.work / "night-scale"
    shutil.rmtree(root, ignore_errors=True)
    with kept_proofs(root / "base", model, site, NO_LIMIT) as proofs:
        model.push(SlotPatch(site, space.mean, config.gap_share, config.ramp_share, {slots[0].subject: slots[0]}))
        alone = asked_alone(model, _book(model, site))
        Proved(model, site, proofs, base=True, alone=alone).score([_asked(p) for p in standing])
        model.rollback(0)
    nights = []
    for edits in sizes.scale_edits:
        folder = root / str(edits)
        shutil.copytree(root / "base", folder)
        earlier, now = slots[:edits], slots[edits : edits + sizes.scale_tonight]
        before, tonight = (
            SlotPatch(site, space.mean, config.gap_share, config.ramp_share, {s.subject: s for s in some})
            for some in (earlier, now)
        )
        own = [make_probe("success", w.replace("{s}", s.subject), (names[0],), s.subject) for s in now for w in wordings[:1]]
        own += [make_probe("rephrase", w.replace("{s}", s.subject), (names[0],), s.subject) for s in now for w in wordings[1:2]]
        held = [
            make_probe(kind, w.replace("{s}", s.subject), (names[0],), s.subject)
            for s in (*earlier, *now)
            for kind, w in zip(("retain", "rephrase"), wordings, strict=False)
        ]
        night = _Night(
            edits, folder, before, tonight, make_probe_set("n", [*own, *fresh, *standing]), make_probe_set("r", held)
        )
        _history(model, site, night, alone)
        nights.append(night)
    counts: dict[int, Counts] = {}

    def once() -> Once:
        parts: dict[str, float] = {}
        with Meter(model) as meter:
            for night in nights:
                with TemporaryDirectory(prefix="night-scale-") as own:
                    shutil.copytree(night.folder, own, dirs_exist_ok=True)
                    parts[f"{night.edits:,} edits"], counts[night.edits] = _evaluated(model, site, night, Path(own), alone)
        first, *_, last = parts.values()
        details = {
            "CPU seconds with most edits over those with fewest": round(last / first, 2),
            "proved and asked": {name: (found.proved, found.asked) for name, found in counts.items()},
            "standing probes": len(standing),
            "edits of the night": sizes.scale_tonight,
        }
        return Once(edits=0, probes=sum(len(n.probes.probes) + len(n.retain.probes) for n in nights), meter=meter,
                    parts=parts, details=details)  # fmt: skip

    def compare(ours: Once) -> list[Comparison]:
        """All that the night with most edits asks, asked: a sample of it, without proof."""
        night = nights[-1]
        asked = [*night.probes.probes, *night.retain.probes]
        some = asked[:: max(1, len(asked) // sizes.plain_probes)][: sizes.plain_probes]
        _wear(model, night)
        try:
            start = time.process_time()
            predict(model, some)
            each = (time.process_time() - start) / len(some)
        finally:
            model.rollback(0)
        own = list(ours.parts.values())[-1] / len(asked)
        note = "CPU seconds; everything else of an evaluation is in ours alone"
        return [
            Comparison(baseline="every probe asked", items=len(some), baseline_s=each, ours_s=own, ratio=each / own, note=note)
        ]

    return Case("ledger", once, compare)


def _evaluated(model: EditableModel, site: str, night: _Night, folder: Path, alone: bool) -> tuple[float, Counts]:
    """CPU seconds of a night's evaluation, from the patches on, and how many answers it proved and asked."""
    _wear(model, night)
    try:
        start = time.process_time()
        # As in a process of its own: neither the openings nor the thresholds are in memory.
        book = _book(model, site)
        recall_rivals(rivals_file(folder, model, site), book)
        with kept_proofs(folder, model, site, NO_LIMIT) as proofs:
            base, edited = (Proved(model, site, proofs, base=is_base, alone=alone) for is_base in (True, False))
            evaluate(base, edited, night.probes, retain=night.retain)
        keep_rivals(rivals_file(folder, model, site), book.rivals)
        spent = time.process_time() - start
    finally:
        model.rollback(0)
    return spent, Counts(base.counts.proved + edited.counts.proved, base.counts.asked + edited.counts.asked)


def _history(model: EditableModel, site: str, night: _Night, alone: bool) -> None:
    """What the nights before tonight asked and kept."""
    model.derived.clear()
    model.push(night.before)
    own = set(night.tonight.changes)
    asked = [p for p in (*night.probes.probes, *night.retain.probes) if p.kind != "neighbourhood" and p.request_id not in own]
    try:
        with kept_proofs(night.folder, model, site, NO_LIMIT) as proofs:
            Proved(model, site, proofs, alone=alone).score([_asked(p) for p in asked])
        keep_rivals(rivals_file(night.folder, model, site), _book(model, site).rivals)
    finally:
        model.rollback(0)


def _wear(model: EditableModel, night: _Night) -> None:
    model.derived.clear()
    for patch in (night.before, night.tonight):
        model.push(patch)


def _book(model: EditableModel, site: str) -> SlotBook:
    return model.memories[slots_name(site)]


def _slots(
    model: EditableModel, site: str, space: SubjectSpace, config: LedgerConfig, subjects: Sequence[str], wordings: Sequence[str]
) -> list[Slot]:
    prompts = [w.replace("{s}", s) for s in subjects for w in wordings]
    states = subject_states(model, prompts, [s for s in subjects for _ in wordings], site)
    generator = torch.Generator().manual_seed(config.seed)
    size = VALUE_SHARE * float((states - space.mean).norm(dim=1).mean()) / states.shape[1] ** 0.5
    slots = []
    for subject, own in zip(subjects, states.split(len(wordings)), strict=True):
        vector = on_grid(space.filter(own, config.filter_slack)).float()
        value = size * torch.randn(states.shape[1], generator=generator)
        smallest, foreign = float(space.scores(vector, own).min()), float(space.scores(vector, space.bank).max())
        slots.append(Slot(subject, (), own.clone(), vector, smallest, foreign, value, space.mean))
    return slots


def _asked(probe: Probe) -> Question:
    return Question(probe.prompt, probe.targets[0])


def _wordings(world: Warehouse) -> list[str]:
    """The first wording of each relation, then the second of each, and so on."""
    ranked = [(at, relation, prompt) for relation, t in templates_of(world).items() for at, prompt in enumerate(t.prompts)]
    return [prompt for _, _, prompt in sorted(ranked)]


def _questions(kind: ProbeKind, names: Sequence[str], wordings: Sequence[str], count: int) -> list[Probe]:
    """Each name in one wording, then each in the next, and so on."""
    pairs = ((w, at, name) for w in wordings for at, name in enumerate(names))
    found = []
    for wording, at, name in pairs:
        if len(found) == count:
            break
        found.append(make_probe(kind, wording.replace("{s}", name), (names[at - 1],), None))
    return found
