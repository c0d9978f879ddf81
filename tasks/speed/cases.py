"""The cases of the speed benchmark: each is made ready once, then measured as often as asked."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from checks.evaluation import EDIT_KINDS, evaluate, predict
from checks.gates.decide import decide, load_policy
from checks.predictor import Question
from editors.base import Editor, Patch, Prepared
from editors.mechanics.second_moment import read_preparation
from editors.mechanics.settings import LocateEditConfig
from editors.model import EditableModel
from editors.preparation import prepared_for
from editors.presets import load_editor
from editors.session import batch_of, run_edits
from editors.solvers.held_keys import HeldKeys
from editors.views import AtDepth
from tasks.quality.requests import benchmark_requests
from tasks.serving.corpus import calibration, calibration_subjects
from tasks.speed.case import BenchContext, Case, Comparison, Meter, Once
from tasks.speed.ingest_speed import ingest_speed, write_recording
from tasks.speed.memory import peak_memory
from tasks.speed.night_scale import night_scale
from tasks.speed.plain_forms import plain_answers, plain_directions, plain_few_shot, plain_grace_values, plain_values
from warehouse.records import EditRequest, ProbeSet
from warehouse.world.probes import build_edit_probes, make_probe_set, standing_probes


def _requests(context: BenchContext, count: int) -> list[EditRequest]:
    return benchmark_requests(context.world, context.model, "modification", count, split="all", seed=0)


def _ready(context: BenchContext, name: str) -> tuple[Editor, Prepared]:
    """The editor with its preset, and what it learnt before any edit; the same preparation as the nights use."""
    own = context.settings.editor.overrides if name == context.settings.editor.name else {}
    editor = load_editor(name, context.model, {"seed": context.settings.seed, **own}, context.settings.presets)
    corpus = calibration(context.world).corpus
    return editor, prepared_for(editor, context.model, corpus, context.settings.preparations)


def _some(items: Sequence[int], count: int) -> list[int]:
    """Evenly spaced ones: the first few would share a length."""
    step = max(1, len(items) // max(1, count))
    return list(items[::step])[:count]


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _comparison(baseline: str, items: int, baseline_s: float, ours: Once, note: str) -> Comparison:
    each, own = baseline_s / items, ours.meter.wall_s / (ours.edits or ours.probes)
    return Comparison(baseline=baseline, items=items, baseline_s=each, ours_s=own, ratio=each / own, note=note)


# ---------------------------------------------------------------- edits


def _edit_once(model: EditableModel, requests: Sequence[EditRequest], make: Callable[[], list[Patch]]) -> Once:
    with Meter(model) as meter:
        patches = make()
    notes = [patch.meta.get("note", {}) for patch in patches]
    return Once(
        edits=len(requests),
        probes=0,
        meter=meter,
        edit_s=meter.wall_s,
        patch_bytes=sum(patch.num_bytes for patch in patches),
        details={"steps": [note["steps"] for note in notes]} if all("steps" in note for note in notes) else {},
    )


def _edit_r_rome(context: BenchContext) -> Case:
    requests, model = _requests(context, context.sizes.edits), context.model
    editor, prepared = _ready(context, "r_rome")
    config = editor.config
    assert isinstance(config, LocateEditConfig)
    layer = int(config.model_dump()["layer"])
    contexts = read_preparation(prepared, (layer,), model.device).contexts
    editor.edit_each(model, requests[:1], prepared)

    def compare(ours: Once) -> list[Comparison]:
        chosen = _some(range(len(requests)), context.sizes.plain_edits)
        some, steps = [requests[i] for i in chosen], [ours.details["steps"][i] for i in chosen]
        plain = partial(plain_values, model, some, contexts, layer, "mlp", config)
        return [
            _comparison(
                "whole-model passes, published stop",
                len(some),
                _timed(plain),
                ours,
                "values only, without the closed form; stops by loss alone",
            ),
            _comparison(
                "whole-model passes, equal steps",
                len(some),
                _timed(lambda: plain(steps=steps)),
                ours,
                "values only; exactly the steps that ours took",
            ),
        ]

    def once() -> Once:
        return _edit_once(model, requests, lambda: editor.edit_each(model, requests, prepared))

    return Case("r_rome", once, compare)


def _edit_ledger(context: BenchContext) -> Case:
    requests, model = _requests(context, context.sizes.edits), context.model
    editor, prepared = _ready(context, "ledger")
    numbers = editor.config.model_dump()

    def make(solver: str, some: Sequence[EditRequest]) -> list[Patch]:
        # A fresh editor: one that has solved a slot does not solve it again.
        return load_editor("ledger", model, {**numbers, "value_solver": solver}).edit_each(model, some, prepared)

    make("leads", requests[:1])

    def compare(ours: Once) -> list[Comparison]:
        some = [requests[i] for i in _some(range(len(requests)), context.sizes.plain_edits)]
        note = "the whole edit, filter and gates too; it stops by its own margin"
        return [_comparison("values by Adam on the mean NLL", len(some), _timed(lambda: make("adam", some)), ours, note)]

    return Case("ledger", lambda: _edit_once(model, requests, lambda: make("leads", requests)), compare)


def _edit_memit(context: BenchContext) -> Case:
    requests, model = _requests(context, context.sizes.memit_edits), context.model
    editor, prepared = _ready(context, "memit")
    config = editor.config
    assert isinstance(config, LocateEditConfig)
    layers = tuple(config.model_dump()["layers"])
    contexts = read_preparation(prepared, layers, model.device).contexts
    editor.edit(model, batch_of(requests[:1]), prepared)

    def compare(ours: Once) -> list[Comparison]:
        some = [requests[i] for i in _some(range(len(requests)), context.sizes.plain_memit_edits)]
        seconds = _timed(lambda: plain_values(model, some, contexts, layers[-1], "block", config))
        return [
            _comparison(
                "whole-model passes, published stop",
                len(some),
                seconds,
                ours,
                "values only, without the closed form; ours with it",
            )
        ]

    def once() -> Once:
        return _edit_once(model, requests, lambda: [editor.edit(model, batch_of(requests), prepared)])

    return Case("memit", once, compare)


def _edit_grace(context: BenchContext) -> Case:
    requests, model = _requests(context, context.sizes.edits), context.model
    editor, prepared = _ready(context, "grace")
    config = editor.config.model_dump()
    path = model.anatomy.mlp if config["site"] == "mlp" else model.anatomy.block
    site, size = path.format(layer=config["layer"]), config["learning_rate"] * float(prepared.meta["output_size"])
    editor.edit_each(model, requests[:1], prepared)

    def compare(ours: Once) -> list[Comparison]:
        some = [requests[i] for i in _some(range(len(requests)), context.sizes.plain_edits)]
        steps = [int(config["num_steps"])] * len(some)
        seconds = _timed(lambda: plain_grace_values(model, some, site, steps, size))
        return [
            _comparison(
                "whole-model passes, all steps",
                len(some),
                seconds,
                ours,
                "one edit at a time; the published form has no early stop",
            )
        ]

    def once() -> Once:
        return _edit_once(model, requests, lambda: editor.edit_each(model, requests, prepared))

    return Case("grace", once, compare)


def _sequence_malmen(context: BenchContext) -> Case:
    """The least squares of one projection late in a sequence: its net needs training, its algebra does not."""
    sizes, tokens, ridge = context.sizes, 12, 1.0
    width = context.model.weight(context.model.anatomy.mlp_out, 0).shape[1]
    generator = torch.Generator().manual_seed(0)
    earlier = [torch.randn(width, tokens, generator=generator) for _ in range(sizes.held_edits)]
    new = [torch.randn(width, tokens, generator=generator) for _ in range(sizes.next_edits)]

    def once() -> Once:
        held = HeldKeys(width, ridge)
        for keys in earlier:
            held.hold(keys)
        with Meter(context.model) as meter:
            for keys in new:
                held.directions(keys)
                held.hold(keys)
        return Once(edits=len(new), probes=0, meter=meter, edit_s=meter.wall_s, details={"width": width, "tokens": tokens})

    def compare(ours: Once) -> list[Comparison]:
        before, some = torch.cat(earlier, dim=1), new[: sizes.plain_next_edits]
        seconds = _timed(lambda: [plain_directions(before, keys, ridge) for keys in some])
        return [
            _comparison(
                "the whole system anew for each edit",
                len(some),
                seconds,
                ours,
                f"least squares alone, one projection, {len(earlier)} edits held",
            )
        ]

    return Case("malmen", once, compare)


# ---------------------------------------------------------------- probes and nights


def _probe_set(context: BenchContext, requests: Sequence[EditRequest], count: int, drawdown: int) -> ProbeSet:
    """At most `count` probes of a night's kinds: all of SR and GR, the drawdown set, and of the rest what has room."""
    bystanders = calibration_subjects(context.world)
    own = build_edit_probes(context.world, requests, excluded_subjects=bystanders)
    away = standing_probes(context.world, kind="drawdown", limit=drawdown, excluded_subjects=bystanders, requests=requests)
    first = [*(p for p in own.probes if p.kind in EDIT_KINDS), *away.probes]
    rest = sorted((p for p in own.probes if p.kind not in EDIT_KINDS), key=lambda p: p.probe_id)
    return make_probe_set("bench", [*first, *rest][:count])


def _evaluate(context: BenchContext) -> Case:
    model, count = context.model, context.sizes.probes
    requests = _requests(context, max(1, count // 12))
    probes = _probe_set(context, requests, count, count // 3).probes
    answered: dict[str, bool] = {}

    def once() -> Once:
        with Meter(model) as meter:
            found = predict(model, probes)
        answered.update((probe_id, prediction.exact) for probe_id, prediction in found.items())
        return Once(edits=0, probes=len(probes), meter=meter, probe_s=meter.wall_s)

    def compare(ours: Once) -> list[Comparison]:
        some = [probes[i] for i in _some(range(len(probes)), context.sizes.plain_probes)]
        start = time.perf_counter()
        answers = plain_answers(model, some)
        seconds = time.perf_counter() - start
        same = sum(any(a.exact for a in own) == answered[p.probe_id] for own, p in zip(answers, some, strict=True))
        return [_comparison("one probe a forward", len(some), seconds, ours, f"{same} of {len(some)} answers are the same")]

    predict(model, probes[:1])
    return Case("", once, compare)


def _few_shot(context: BenchContext) -> Case:
    """Questions behind three examples of their relation, which are the same for all of a relation's questions."""
    model, examples = context.model, defaultdict[str, list[str]](list)
    for edit in calibration(context.world).corpus.edits:
        examples[edit.request.relation].append(f"{edit.request.prompt} {edit.request.target_true}.\n")
    questions = [
        Question("".join(examples[request.relation][:3]) + request.prompt, request.target_true)
        for request in _requests(context, context.sizes.few_shot)
        if request.target_true
    ]
    answered: list[bool] = []

    def once() -> Once:
        with Meter(model) as meter:
            answered[:] = [answer.exact for answer in model.score(questions)]
        return Once(edits=0, probes=len(questions), meter=meter, probe_s=meter.wall_s)

    def compare(ours: Once) -> list[Comparison]:
        start = time.perf_counter()
        whole = plain_few_shot(model, questions)
        seconds = time.perf_counter() - start
        same = sum(answer.exact == own for answer, own in zip(whole, answered, strict=True))
        note = f"packed alike; {same} of {len(whole)} answers are the same"
        return [_comparison("every question with its examples", len(questions), seconds, ours, note)]

    model.score(questions[:1])
    return Case("", once, compare)


def _nightly(context: BenchContext) -> Case:
    """A night without Prefect and the store: no-op check, probes, edit, evaluation, gate; nothing is cached."""
    settings, model = context.settings, context.model
    requests = _requests(context, context.sizes.night_edits)
    editor, prepared = _ready(context, settings.editor.name)
    policy = load_policy(settings.policy)
    size = settings.editor.batch_size or len(requests)
    size = min(size, editor.card.max_batch or size)
    held = tuple(p.prompt for p in standing_probes(context.world, kind="held_text", limit=settings.probes.held_texts).probes)

    def once() -> Once:
        parts: dict[str, float] = {}
        try:
            with Meter(model) as meter:
                with _part(parts, "no-ops"):
                    model.score([Question(r.prompt, r.target_new) for r in requests])
                with _part(parts, "probes"):
                    probes = _probe_set(context, requests, context.sizes.night_probes, settings.probes.drawdown)
                    retain = standing_probes(context.world, kind="retain", limit=len(requests), requests=requests)
                with _part(parts, "edit"):
                    inside = meter.model_s
                    steps = list(_apply(editor, model, requests, prepared, size))
                    inside = meter.model_s - inside
                with _part(parts, "evaluate"):
                    report = evaluate(
                        AtDepth(model),
                        model,
                        probes,
                        retain=retain,
                        texts=held,
                        old_answers={r.request_id: [r.target_true] for r in requests if r.target_true},
                    )
                with _part(parts, "gate"):
                    decision = decide(policy, report, datetime.now(UTC))
        finally:
            model.rollback(0)
        # An edit is model arithmetic to the last: passes above the edit, gradients, closed form.
        parts["not model arithmetic"] = meter.wall_s - parts["edit"] - (meter.model_s - inside)
        scores = {f"{s.metric}/{s.slice}".rstrip("/"): s.value for s in report.scores}
        return Once(
            edits=len(requests),
            probes=len(probes.probes),
            meter=meter,
            parts=parts,
            edit_s=parts["edit"],
            probe_s=parts["evaluate"],
            patch_bytes=sum(patch.num_bytes for patch in steps),
            details={
                "batch_size": size,
                "verdict": decision.verdict,
                "failed_rules": [r.explanation for r in decision.failed_rules],
                "scores": {name: scores.get(name) for name in ("SR", "GR", "locality/neighbourhood", "DD/known")},
            },
        )

    return Case(settings.editor.name, once)


def _apply(
    editor: Editor, model: EditableModel, requests: Sequence[EditRequest], prepared: Prepared, size: int
) -> Iterator[Patch]:
    mode = "sequential" if size == 1 else "sequential-batch"
    for step in run_edits(editor, model, requests, prepared, mode=mode, batch_size=size):
        yield step.patch


# ---------------------------------------------------------------- the live source


def _ingest(context: BenchContext) -> Case:
    """Events of a recorded stream parsed, filtered and stored; no model works here."""
    count = context.sizes.stream_events

    def once() -> Once:
        with TemporaryDirectory() as folder:
            recording = Path(folder) / "bench.sse"
            expected = write_recording(recording, count)
            with Meter(context.model) as meter:
                speed = ingest_speed(recording, Path(folder), count, expected)
        details = {
            "events/s": round(speed.events_per_s),
            "events/s of CPU": round(speed.events_per_cpu_s),
            "events": speed.events,
            "stored": speed.stored,
            "memory after a tenth, MB": round(speed.rss_early_mb),
            "memory at the end, MB": round(speed.rss_late_mb),
        }
        return Once(edits=0, probes=0, meter=meter, details=details)

    return Case("", once)


@contextmanager
def _part(parts: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    parts[name] = time.perf_counter() - start


CASE_BUILDERS: Mapping[str, Callable[[BenchContext], Case]] = {
    "edit-ledger": _edit_ledger,
    "edit-r_rome": _edit_r_rome,
    "edit-memit-100": _edit_memit,
    "edit-grace": _edit_grace,
    "sequence-malmen": _sequence_malmen,
    "evaluate": _evaluate,
    "few-shot": _few_shot,
    "nightly-500": _nightly,
    "night-scale": night_scale,
    "ingest": _ingest,
    "peak-memory": peak_memory,
}
