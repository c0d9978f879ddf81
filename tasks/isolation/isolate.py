"""After a rejection: find the edits that break the gate, keep evidence against them, and make a candidate of the rest."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from prefect import task

from checks.evaluation import EvaluationSettings, predict
from checks.evaluation import evaluate as measure
from checks.gates.decide import decide, load_policy
from checks.gates.hopeless import hopeless
from editors.base import Editor, Prepared, retracting
from editors.model import EditableModel
from editors.session import run_edits
from tasks.candidate import Candidate
from tasks.isolation.group_testing import Isolation, isolate
from tasks.night.edit import batch_size, make_edits, record_made
from tasks.night.evaluate import in_force
from tasks.serving.forms import how_to_ask
from tasks.serving.models import at_checkpoint, base_model, has_patch, stored_patch
from tasks.serving.prepare import editor_of, preparation_of
from tasks.serving.proof import Asking
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.trail import note
from tasks.workspace import WarehouseCache, night_folder, store_of, warehouse
from warehouse.digests import canonical_json
from warehouse.lineages.chain import checkpoint
from warehouse.lineages.edits import edits_of, settle_edits
from warehouse.nights.held_edits import HeldEdit, hold
from warehouse.nights.intake import requests_by_id
from warehouse.records import EditRequest, EvaluationReport, GateDecision, GatePolicy, Probe, Record
from warehouse.whole_files import write_whole
from warehouse.world.forms import told
from warehouse.world.probes import load_probe_set, make_probe_set, standing_probes

log = logging.getLogger(__name__)
#: Probes of the standing sets that a subset is measured on: enough to see an edit that breaks many.
NUM_DRAWDOWN, NUM_RETAIN, NUM_SHOWN = 200, 200, 20
#: Probes that have a meaning only while their own edit is made.
OWN_KINDS = frozenset({"success", "also", "rephrase", "carry_over", "obsolete", "alias", "one_hop", "logical"})
#: Metrics over standing probes alone, which tonight's edits can only make worse.
STANDING = frozenset({"DD", "perplexity_ratio", "KL"})
#: How the ledger's reason begins of an edit that was found to be a culprit, and of one that was not explored.
HELD_BACK = ("culprit:", "held back:")
#: Of those, what the edit itself was to teach.
LEARNT_KINDS = frozenset({"success", "also", "rephrase"})


class Culprit(Record):
    """An edit that was taken out, with the evidence, all of it seen beside the edits that were kept.

    Attributes:
        broken: how many probes are right without it and wrong with it; `probes`: some of them.
        missed: its own prompts and rephrases that are answered wrongly although it was made.
    """

    request_id: str
    broken: int
    probes: tuple[tuple[str, str], ...]
    missed: tuple[tuple[str, str], ...] = ()

    @property
    def sentence(self) -> str:
        parts = [f"it breaks {self.broken} probes{_shown(self.probes)}"] if self.broken else []
        parts += [f"{len(self.missed)} of its own prompts are not learnt{_shown(self.missed)}"] if self.missed else []
        return f"{HELD_BACK[0]} beside the edits that were kept " + (" and ".join(parts) or "the gate fails with it")


def _shown(probes: Sequence[tuple[str, str]]) -> str:
    return f" ({'; '.join(f'{kind}: {told(prompt)}' for kind, prompt in probes[:3])})" if probes else ""


class Isolated(Record):
    """What came of looking for culprits. `rest`: the night without them, to be evaluated and gated as any other."""

    isolation: Isolation
    culprits: tuple[Culprit, ...]
    rest: Candidate


@task(name="isolate culprits", **STEP)
def isolate_culprits(settings: Settings, done: Candidate, report: EvaluationReport, decision: GateDecision) -> Isolated | None:
    """Look for culprits in a rejected night; None where it was not rejected, the policy asks for none, or none help.

    Subsets are judged on fewer probes, by value, under the rules that stopped the night. The rest is no more than a
    candidate: the ordinary gate decides on it. What an earlier run found is read, not looked for again.
    """
    policy = load_policy(settings.policy)
    if decision.verdict != "reject" or not policy.isolate_evaluations or len(done.edited) < 2:
        return None
    if told := hopeless(decision, len(done.edited)):
        log.warning("%s: no culprit is looked for, because none can be found: %s", done.night, "; ".join(told))
        return None
    kept = night_folder(settings, done.night) / "isolated.json"
    if kept.exists():
        found = Isolated.model_validate_json(kept.read_bytes())
        if found.rest.parent == done.parent and all(has_patch(settings, d) for d in found.rest.new_patches):
            return found
    with Asking(settings) as asking:
        result = _isolated(done, _Trial(settings, done, report, decision, policy, asking), policy)
    if result is not None:
        write_whole(kept, canonical_json(result))
    return result


def _isolated(done: Candidate, trial: _Trial, policy: GatePolicy) -> Isolated | None:
    whole = frozenset(done.edited)
    if trial.passes(whole):
        log.warning("%s: the reduced probes do not show what stopped it; no culprit can be looked for", done.night)
        return None
    if told := trial.fails_without():
        log.warning(
            "%s: no culprit is looked for: what is served now fails without any edit of the night: %s. Look for the "
            "edits of earlier nights (`errata log`), or roll back",
            done.night,
            " ".join(told),
        )
        return None
    isolation = isolate(done.edited, trial.passes, policy.isolate_evaluations)
    log.warning(
        "%s: %d culprits, %d unexplored, %d evaluations",
        done.night,
        len(isolation.culprits),
        len(isolation.unexplored),
        isolation.evaluations,
    )
    if not isolation.kept:
        return None
    culprits = tuple(trial.evidence(name, frozenset(isolation.kept)) for name in isolation.culprits)
    return Isolated(isolation=isolation, culprits=culprits, rest=trial.rest(isolation))


class _Trial:
    """Subsets of a night, made on its parent and measured."""

    def __init__(
        self,
        settings: Settings,
        done: Candidate,
        report: EvaluationReport,
        decision: GateDecision,
        policy: GatePolicy,
        asking: Asking,
    ) -> None:
        self._settings, self._done, self._asking = settings, done, asking
        base = base_model(settings)
        self._asker = how_to_ask(settings)
        self._editor: Editor = editor_of(settings, base)
        self._prepared: Prepared = preparation_of(settings, self._editor, base)
        with warehouse(settings) as wh:
            requests = requests_by_id(wh, list(done.edited))
            probes = load_probe_set(wh, report.probe_set_digest).probes
            parent = checkpoint(wh, done.parent) if done.parent else None
        retained = in_force(settings, requests)
        with warehouse(settings) as wh:
            retain = standing_probes(wh, kind="retain", limit=NUM_RETAIN, requests=retained, asker=self._asker).probes
        self._old = {r.request_id: [r.target_true] for r in retained if r.target_true}
        self._requests: dict[str, EditRequest] = {r.request_id: r for r in requests}
        stopped = [r.rule for r in decision.failed_rules if r.rule.on_fail == "reject"]
        self._policy = policy.model_copy(
            update={"rules": tuple(rule.model_copy(update={"judge": "point", "min_n": 1}) for rule in stopped)}
        )
        metrics = {rule.metric for rule in stopped}
        self._probes, self._retain = _reduced(probes, metrics), retain if metrics & {"SRR", "GRR", "ESR"} else ()
        # Free text is slow; it is written only where a rule about it stopped the night.
        fluent, failing = "fluency" in metrics, "failure_mode" in metrics
        self._measured = EvaluationSettings(
            max_kl_prompts=128 if "KL" in metrics else 0,
            max_fluency_prompts=24 if fluent else 0,
            max_failures=200 if failing else 0,
        )
        self._model: EditableModel = at_checkpoint(settings, store_of(settings), parent)
        self._depth = len(self._model.patches)
        able = retracting(self._editor)
        if able is not None and able.config.digest == done.config_digest:
            for digest in done.new_patches:
                able.remember(self._model, stored_patch(settings, store_of(settings), digest), self._prepared)
        self._right: dict[frozenset[str], dict[str, bool]] = {}

    def passes(self, subset: frozenset[str]) -> bool:
        """Make and measure one subset; the model is then the parent again."""
        verdict = self._judge(subset, self._policy).verdict
        log.info("%s: %d of %d edits: %s", self._done.night, len(subset), len(self._requests), verdict)
        return verdict == "promote"

    def fails_without(self) -> tuple[str, ...]:
        """What stops the night and is so on its parent as well, of rules on what no edit of the night teaches."""
        rules = tuple(rule for rule in self._policy.rules if rule.metric in STANDING)
        if self._done.parent is None or not rules:
            return ()
        found = self._judge(frozenset(), self._policy.model_copy(update={"rules": rules}))
        return tuple(result.explanation for result in found.failed_rules)

    def _judge(self, subset: frozenset[str], policy: GatePolicy) -> GateDecision:
        out = frozenset(self._requests) - subset
        probes = make_probe_set("subset", [p for p in self._probes if not (p.kind in OWN_KINDS and p.request_id in out)])
        retain = make_probe_set("retain", [p for p in self._retain if p.request_id not in out])
        self._edit(subset)
        try:
            cache = WarehouseCache(self._settings)
            before, after = self._asking.states(self._model)
            found = measure(
                before,
                after,
                probes,
                retain=retain,
                old_answers=self._old,
                cache=cache,
                settings=self._measured,
                form_of=self._asker.slicing,
            )
            asked = predict(after, [*probes.probes, *retain.probes], cache)
        finally:
            self._model.rollback(self._depth)
        self._right[subset] = {name: p.exact for name, p in asked.items()}
        return decide(policy, found, datetime.now(UTC))

    def _edit(self, subset: Collection[str]) -> None:
        chosen = [r for name, r in self._requests.items() if name in subset]
        size = batch_size(self._settings, self._editor, len(chosen))
        mode = "sequential" if size == 1 else "sequential-batch"
        for _ in run_edits(self._editor, self._model, chosen, self._prepared, mode=mode, batch_size=size):
            continue

    def evidence(self, name: str, kept: frozenset[str]) -> Culprit:
        """Probes that are right with what is kept and wrong with the culprit beside it, as far as both were asked."""
        if kept | {name} not in self._right or kept not in self._right:
            return Culprit(request_id=name, broken=0, probes=())
        without, beside = self._right[kept], self._right[kept | {name}]
        broken = [p for p in (*self._probes, *self._retain) if without.get(p.probe_id) and beside.get(p.probe_id) is False]
        shown = tuple((str(p.kind), p.prompt) for p in broken[:NUM_SHOWN])
        missed = sorted(
            (
                (str(p.kind), p.prompt)
                for p in self._probes
                if p.request_id == name and p.kind in LEARNT_KINDS and beside.get(p.probe_id) is False
            ),
            key=lambda one: (one[0] != "success", one),
        )
        return Culprit(request_id=name, broken=len(broken), probes=shown, missed=tuple(missed))

    def rest(self, isolation: Isolation) -> Candidate:
        """The night of what is kept, its patches saved and its edits in the ledger."""
        settings, done = self._settings, self._done
        chosen = [self._requests[name] for name in isolation.kept]
        made = make_edits(settings, self._editor, self._prepared, self._model, chosen, done.night, done.joined)
        self._model.rollback(self._depth)
        with warehouse(settings) as wh, wh.transaction():
            record_made(settings, wh, done.night, made)
        why = [(name, "culprit") for name in isolation.culprits] + [(name, "unexplored") for name in isolation.unexplored]
        return done.model_copy(
            update={
                "new_patches": tuple(r.patch_digest for r in made.rows),
                "edited": tuple(r.request_id for r in chosen),
                "skipped": (*done.skipped, *why),
                "right_after": made.right_after,
                "edit_seconds": round(made.seconds, 3),
                "patch_bytes": sum(r.bytes for r in made.rows),
            }
        )


def _reduced(probes: tuple[Probe, ...], metrics: Collection[str]) -> tuple[Probe, ...]:
    """The night's probes without most of the standing ones: these are many, and a culprit breaks many."""
    drawdown = sorted((p for p in probes if p.kind == "drawdown"), key=lambda p: p.probe_id)[:NUM_DRAWDOWN]
    held = [p for p in probes if p.kind == "held_text"] if "perplexity_ratio" in metrics else []
    return (*(p for p in probes if p.kind not in ("drawdown", "held_text")), *drawdown, *held)


@task(name="quarantine culprits", **STEP)
def quarantine_culprits(settings: Settings, done: Candidate, found: Isolated) -> None:
    """Write the evidence against each culprit into the ledger and the trail, and put it into the queue of what waits.

    The same again changes nothing.

    Args:
        done: the whole night, whose candidate is rejected already.
    """
    rejected = done.checkpoint_id
    why = {c.request_id: c.sentence for c in found.culprits}
    why |= {name: f"{HELD_BACK[1]} the budget of evaluations ended before it" for name in found.isolation.unexplored}
    with warehouse(settings) as wh, wh.transaction():
        lines = [line for line in edits_of(wh, settings.lineage, done.night) if line.checkpoint_id == rejected]
        against = {c.request_id: c for c in found.culprits}
        for edit in (line.edit for line in lines if line.edit.request_id in why):
            sentence, culprit = why[edit.request_id], against.get(edit.request_id)
            settle_edits(
                wh, settings.lineage, done.night, rejected, status="rejected", reason=sentence, edit_ids=[edit.edit_id]
            )
            hold(
                wh,
                [
                    HeldEdit(
                        lineage=settings.lineage,
                        edit_id=edit.edit_id,
                        request_id=edit.request_id,
                        night=done.night,
                        checkpoint_id=rejected,
                        cause="culprit" if culprit else "unexplored",
                        sentence=sentence,
                        broken=culprit.broken if culprit else 0,
                        probes=culprit.probes if culprit else (),
                    )
                ],
            )
        body = {
            "checkpoint": rejected,
            "culprits": {c.request_id: c.model_dump(mode="json") for c in found.culprits},
            "isolation": found.isolation.model_dump(mode="json", exclude={"kept"}),
            "kept": len(found.isolation.kept),
        }
        note(settings, wh, "culprits", done.night, body, reason="; ".join(c.sentence for c in found.culprits))
