"""The quality benchmark: editors by modes over tasks made from the warehouse, measured by the metrics of the gates.

Modes are the survey's. Single and batch edits each stand on a fresh `f_0`; sequences keep their patches, so SR and GR
are read right after each batch, SRR and GRR at the end. The base model is asked everything once for all editors.
Beside the gates' metrics stand two that no night is asked: the scores that papers print, and general ability after a sequence.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from checks.ability.items import ability_items, answered_still
from checks.evaluation import EDIT_KINDS, outcomes_of, predict, probe_questions, scores_from_outcomes
from checks.metrics.ability import ability
from checks.metrics.drawdown import kl_divergence, perplexity_ratio
from checks.metrics.fluency import fluency
from checks.metrics.outcome import ProbeOutcome
from checks.metrics.published import Duel, duel_questions, published, won
from checks.predictor import AskedTogether, Scorer
from editors.base import Editor, Mode, Patch, Prepared
from editors.errors import EditRefused, InvalidRequest, UnsupportedMode
from editors.model import EditableModel
from editors.preparation import prepared_for
from editors.session import run_edits, slices
from tasks.quality.false_firing import false_firing
from tasks.quality.latency import latency_ratio
from tasks.quality.questions import BenchmarkOptions, Likelihoods, RunQuestions, ask_base, written
from tasks.quality.requests import Split, Task, base_world
from tasks.quality.rows import BenchmarkRow, CurvePoint, named, save_row
from tasks.serving.known import ask_known
from tasks.serving.models import base_model, shown_name
from tasks.settings import Settings
from tasks.tuning.numbers import editors_with_numbers
from tasks.workspace import warehouse
from warehouse.errors import UsageError
from warehouse.records import EditRequest, Probe, Score

log = logging.getLogger(__name__)

#: (what is being done, edits done, edits in all)
Progress = Callable[[str, int, int], None]


def run_benchmark(
    settings: Settings,
    editors: Sequence[str],
    modes: Sequence[Mode],
    edits: int,
    batch_size: int = 0,
    *,
    split: Split = "report",
    task: Task = "modification",
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    every: int = 0,
    checkpoints: Sequence[int] = (),
    options: BenchmarkOptions | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> list[BenchmarkRow]:
    """Measure each editor in each mode and append a row for each to the warehouse as soon as it is measured.

    Args:
        batch_size: for the two batch modes; 0: all edits are one batch.
        overrides: editor -> numbers over its preset.
        every: in sequences, a point of the curve after every so many edits; 0: none.
        checkpoints: and after these numbers of edits, or after the batch that reaches them. A curve ends at the last edit.

    Raises:
        UsageError: a checkpoint that no sequence of `edits` reaches.
        NotEnoughFacts: the split holds fewer facts than `edits`.
        UnknownEditor, UnsupportedModel: before anything is measured.
    """
    if any(not 1 <= point <= edits for point in checkpoints):
        raise UsageError(f"checkpoints {list(checkpoints)} must lie between 1 and the {edits} edits; ask for more edits")
    model = base_model(settings)
    changed = overrides or {}
    chosen = editors_with_numbers(settings, model, {name: changed.get(name, {}) for name in editors})
    asker = ask_known(settings, progress=lambda done, of: progress and progress("known facts", done, of))
    with base_world(settings) as world:
        questions = ask_base(world, model, task, edits, split=split, seed=seed, options=options, asker=asker)
    rows = []
    for editor in chosen:
        for mode in modes:
            row = benchmark_one(
                editor,
                model,
                questions,
                mode,
                batch_size,
                settings,
                task=task,
                split=split,
                seed=seed,
                every=every,
                checkpoints=checkpoints,
                command=command,
                progress=progress,
            )
            with warehouse(settings) as wh:
                save_row(wh, row)
            rows.append(row)
    return rows


def benchmark_one(
    editor: Editor,
    model: EditableModel,
    questions: RunQuestions,
    mode: Mode,
    batch_size: int,
    settings: Settings,
    *,
    task: Task,
    split: Split,
    seed: int = 0,
    every: int = 0,
    checkpoints: Sequence[int] = (),
    command: str = "",
    progress: Progress | None = None,
) -> BenchmarkRow:
    """One row. The model is the bare base before and after."""
    edits = len(questions.requests)
    size = (batch_size or edits) if mode in ("batch", "sequential-batch") else 1
    prepared = prepared_for(editor, model, questions.corpus, settings.preparations)
    run = _Run(editor, model, questions, prepared, mode, size, seed, every, checkpoints, progress or (lambda *_: None))
    start, note = time.perf_counter(), ""
    try:
        run.measure()
    except UnsupportedMode as error:
        note = str(error)
    finally:
        model.rollback(0)
    log.info("%s, %s, %d edits: %.1f s in all", editor.card.name, mode, edits, time.perf_counter() - start)
    scores = {} if note else named(run.scores())
    if scores and (every or checkpoints) and mode not in ("single", "batch"):
        # The end of a sequence was asked for the row already.
        run.curve.append(CurvePoint(edits=edits, scores=scores | named([run.pace(edits)])))
    return BenchmarkRow(
        editor=editor.card.name,
        mode=mode,
        task=task,
        split=split,
        edits=edits,
        batch_size=min(size, edits),
        scores=scores,
        curve=tuple(run.curve),
        refused=run.refused,
        seconds_per_edit=None if note else run.seconds / edits,
        patch_bytes=run.bytes // edits,
        model=shown_name(model),
        model_digest=model.base_digest,
        config=editor.config.model_dump(mode="json"),
        config_digest=editor.config.digest,
        probe_digest=questions.digest,
        seed=seed,
        device=_device_name(model),
        created_at=datetime.now(UTC),
        command=command,
        note=note,
    )


def _device_name(model: EditableModel) -> str:
    device = model.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class _Run:
    """One editor in one mode: what was answered so far, and what it cost."""

    def __init__(
        self,
        editor: Editor,
        model: EditableModel,
        questions: RunQuestions,
        prepared: Prepared,
        mode: Mode,
        size: int,
        seed: int,
        every: int,
        checkpoints: Sequence[int],
        progress: Progress,
    ) -> None:
        self.editor, self.model, self.questions, self.prepared = editor, model, questions, prepared
        self.mode: Mode = mode
        self.size, self.seed, self.progress = size, seed, progress
        self.every, self.checkpoints = every, checkpoints
        self.outcomes: list[ProbeOutcome] = []
        self.retain: list[ProbeOutcome] = []
        self.texts: tuple[Likelihoods, Likelihoods] = ([], [])
        self.kl: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
        self.written: tuple[list[str], list[str]] = ([], [])
        self.curve: list[CurvePoint] = []
        self.seconds, self.bytes, self.refused, self.done = 0.0, 0, 0, 0
        self.latency: list[Score] = []
        self.firing: list[Score] = []
        self.duels: tuple[dict[Duel, bool], dict[Duel, bool]] = ({}, {})
        self.ability: list[Score] = []

    def measure(self) -> None:
        {"single": self._single, "batch": self._batches}.get(self.mode, self._sequence)()

    def scores(self) -> list[Score]:
        found = [*self._rates(self.outcomes, self.retain), *self.questions.aside]
        found.append(perplexity_ratio(*self.texts, seed=self.seed))
        first, last = (np.concatenate(part) if part else np.empty((0, 0)) for part in self.kl)
        found.append(kl_divergence(first, last, self.seed))
        found += published(self.duels[1], self.duels[0], self.seed)
        found += self.ability
        found += self.firing
        return found + self.latency + fluency(*self.written, self.seed)

    def _rates(self, outcomes: Sequence[ProbeOutcome], retain: Sequence[ProbeOutcome]) -> tuple[Score, ...]:
        return scores_from_outcomes(outcomes, retain=retain, seed=self.seed, form_of=self.questions.asker.slicing)

    def pace(self, edits: int) -> Score:
        """Seconds of editing for each of the edits so far."""
        return Score(metric="seconds_per_edit", value=self.seconds / edits, low=None, high=None, n=edits)

    # ------------------------------------------------------------ modes

    def _single(self) -> None:
        for chunk in slices(self.questions.requests, self.questions.options.together):
            for request, patch in zip(chunk, self._patches_each(chunk), strict=True):
                if patch is not None:
                    self.model.push(patch)
                    self.bytes += patch.num_bytes
                self._ask_single(request)
                if request is self.questions.requests[-1]:
                    self.latency = self.latency or latency_ratio(self.model, self.questions.texts)
                self.model.rollback(0)
                self._tick(1)

    def _patches_each(self, chunk: Sequence[EditRequest]) -> list[Patch | None]:
        """Independent patches; where a guard stops one, the others are made one by one."""
        if self.mode not in (*self.editor.card.modes, *self.editor.card.experimental):
            raise UnsupportedMode(f"{self.editor.card.name} has no mode {self.mode!r} ({self.editor.card.why_not})")
        start = time.perf_counter()
        patches: list[Patch | None] = []
        try:
            patches += self.editor.edit_each(self.model, chunk, self.prepared)
        except (EditRefused, InvalidRequest):
            for request in chunk:
                try:
                    patches += self.editor.edit_each(self.model, [request], self.prepared)
                except (EditRefused, InvalidRequest) as error:
                    self._note_refusal([request], error)
                    patches.append(None)
        self.seconds += time.perf_counter() - start
        return patches

    def _batches(self) -> None:
        for chunk in slices(self.questions.requests, self.size):
            for _ in self._steps(chunk):
                self._note(self._ask_edits(chunk))
                self._ask_standing()
                self._tick(len(chunk))

    def _sequence(self) -> None:
        asked: list[EditRequest] = []
        for chunk in slices(self.questions.requests, self.size):
            for _ in self._steps(chunk):
                asked += chunk
                self.outcomes += self._answers(self.questions.probes_of(chunk, EDIT_KINDS))
                self._tick(len(chunk))
                if len(asked) < len(self.questions.requests) and self._reaches_point(len(asked) - len(chunk), len(asked)):
                    self.curve.append(self._point(asked))
        last = self._ask_edits(self.questions.requests)
        self.retain += [o for o in last if o.probe.kind in EDIT_KINDS]
        self.outcomes += [o for o in last if o.probe.kind not in EDIT_KINDS]
        self._ask_standing()
        self.ability = ability(
            ability_items(), self.questions.ability, answered_still(self.model, ability_items(), self.questions.ability)
        )

    def _reaches_point(self, before: int, now: int) -> bool:
        regular = bool(self.every) and now // self.every > before // self.every
        return regular or any(before < point <= now for point in self.checkpoints)

    def _steps(self, chunk: Sequence[EditRequest]) -> Iterator[None]:
        """Edit one slice; yields once, with the patch on the model (or none, where a guard stopped it)."""
        try:
            for step in run_edits(self.editor, self.model, chunk, self.prepared, mode=self.mode, batch_size=self.size):
                self.seconds += step.seconds
                self.bytes += step.patch.num_bytes
                yield
        except (EditRefused, InvalidRequest) as error:
            self._note_refusal(chunk, error)
            yield

    # ------------------------------------------------------------ questions

    def _answers(self, probes: Sequence[Probe], edit: str = "", *, of: Scorer | None = None) -> list[ProbeOutcome]:
        return outcomes_of(probes, self.questions.before, predict(of or self.model, probes), edit)

    def _ask_edits(self, requests: Sequence[EditRequest], away: Sequence[Probe] = (), edit: str = "") -> list[ProbeOutcome]:
        """The edits' own probes and duels, and some of the standing ones; most prompts are asked for several reasons."""
        probes, duels = [*self.questions.probes_of(requests), *away], self._duels_of(requests)
        asked = AskedTogether(self.model, [*probe_questions(probes), *duel_questions(duels)])
        answers = self._answers(probes, edit, of=asked)
        self._ask_duels(requests, of=asked)
        return answers

    def _note(self, answers: Sequence[ProbeOutcome]) -> None:
        """Nothing came after this batch, so what was right after it is what is retained."""
        self.outcomes += answers
        self.retain += [o for o in answers if o.probe.kind in EDIT_KINDS]

    def _ask_single(self, request: EditRequest) -> None:
        q, place = self.questions, self.done
        away = _stretch(q.drawdown, place * q.options.drawdown_each, q.options.drawdown_each)
        self._note(self._ask_edits([request], away, request.request_id))
        if q.texts:
            self._ask_texts([place % len(q.texts)])
        if len(q.kl_log_probs):
            self._ask_kl([place % len(q.kl_log_probs)])
        if place < len(q.written):
            self._ask_written([place])

    def _duels_of(self, requests: Sequence[EditRequest]) -> list[Duel]:
        return [duel for r in requests for duel in self.questions.duels[r.request_id]]

    def _ask_duels(self, requests: Sequence[EditRequest], *, of: Scorer) -> None:
        for request in requests:
            self.duels[0].update(self.questions.duels[request.request_id])
        self.duels[1].update(won(of, self._duels_of(requests)))

    def _ask_standing(self) -> None:
        q = self.questions
        self.outcomes += self._answers(q.drawdown)
        self._ask_texts(range(len(q.texts)))
        self._ask_kl(range(len(q.kl_log_probs)))
        self._ask_written(range(len(q.written)))
        self.firing = false_firing(self.model, q.texts, self.seed)
        self.latency = self.latency or latency_ratio(self.model, self.questions.texts)

    def _ask_texts(self, chosen: Sequence[int]) -> None:
        q = self.questions
        if chosen:
            self.texts[0].extend(q.likelihoods[i] for i in chosen)
            self.texts[1].extend(self.model.log_likelihoods([q.texts[i] for i in chosen]))

    def _ask_kl(self, chosen: Sequence[int]) -> None:
        q = self.questions
        if chosen:
            prompts = q.kl_prompts
            self.kl[0].append(q.kl_log_probs[list(chosen)])
            self.kl[1].append(self.model.next_token_log_probs([prompts[i] for i in chosen]))

    def _ask_written(self, chosen: Sequence[int]) -> None:
        q = self.questions
        self.written[0].extend(q.written[i] for i in chosen)
        self.written[1].extend(written(self.model, q.requests[i].prompt, q.options, self.seed) for i in chosen)

    def _point(self, asked: Sequence[EditRequest]) -> CurvePoint:
        """The state in the middle of a sequence: all edits so far, the drawdown set and the held texts."""
        q = self.questions
        now = self._answers([*q.probes_of(asked), *q.drawdown])
        retain = [o for o in now if o.probe.kind in EDIT_KINDS]
        others = [o for o in now if o.probe.kind not in EDIT_KINDS]
        at_edit = [o for o in self.outcomes if o.probe.kind in EDIT_KINDS]
        found = list(self._rates([*at_edit, *others], retain))
        if q.texts:
            found.append(perplexity_ratio(q.likelihoods, self.model.log_likelihoods(q.texts), self.seed))
        found += false_firing(self.model, q.texts, self.seed)
        found.append(self.pace(len(asked)))
        point = CurvePoint(edits=len(asked), scores=named(found))
        # A row is kept at the end of its sequence; what a long one has found by now should outlive its process.
        values = ", ".join(f"{name} {s.value:.3f}" for name, s in point.scores.items() if s.value is not None)
        log.info("%s, %s, after %d edits: %s", self.editor.card.name, self.mode, point.edits, values)
        return point

    def _note_refusal(self, requests: Sequence[EditRequest], error: Exception) -> None:
        self.refused += len(requests)
        log.warning("%s refused %d edit(s): %s", self.editor.card.name, len(requests), error)

    def _tick(self, edits: int) -> None:
        self.done += edits
        self.progress(f"{self.editor.card.name} {self.mode}", self.done, len(self.questions.requests))


def _stretch(items: Sequence[Probe], start: int, length: int) -> list[Probe]:
    """`length` items from `start` on, round and round; no item twice."""
    return [items[(start + i) % len(items)] for i in range(min(length, len(items)))]
