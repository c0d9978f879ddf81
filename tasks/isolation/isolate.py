"""After a rejection: find the edits that break the gate, keep evidence against them, and make a candidate of the rest."""

from __future__ import annotations

import logging
from collections.abc import Collection
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
from tasks.isolation.culprits import Culprit, Isolated
from tasks.isolation.group_testing import Isolation, isolate
from tasks.night.edit import batch_size, make_edits, record_made
from tasks.night.evaluate import in_force
from tasks.serving.agreement import LOST
from tasks.serving.forms import how_to_ask
from tasks.serving.models import at_checkpoint, base_model, has_patch, stored_patch
from tasks.serving.prepare import editor_of, preparation_of
from tasks.serving.proof import Asking
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.workspace import WarehouseCache, night_folder, store_of, warehouse
from warehouse.digests import canonical_json
from warehouse.lineages.chain import checkpoint
from warehouse.nights.intake import requests_by_id
from warehouse.records import EditRequest, EvaluationReport, GateDecision, GatePolicy, Probe
from warehouse.whole_files import write_whole
from warehouse.world.probes import load_probe_set, make_probe_set, standing_probes

log = logging.getLogger(__name__)
#: Probes of the standing sets that a subset is measured on: enough to see an edit that breaks many.
NUM_DRAWDOWN, NUM_RETAIN, NUM_SHOWN = 200, 200, 20
#: Probes that have a meaning only while their own edit is made.
OWN_KINDS = frozenset({"success", "also", "rephrase", "carry_over", "obsolete", "alias", "one_hop", "logical"})
#: Metrics over standing probes alone, which tonight's edits can only make worse.
STANDING = frozenset({"DD", "perplexity_ratio", "KL"})
#: Metrics that count edits, and are taken of what would be served.
OF_EDITS = frozenset({"served_agreement", "SR", "GR", "ES", "SRR", "GRR", "ESR"})
#: Of those, what the edit itself was to teach.
LEARNT_KINDS = frozenset({"success", "also", "rephrase"})


@task(name="isolate culprits", **STEP)
def isolate_culprits(settings: Settings, done: Candidate, report: EvaluationReport, decision: GateDecision) -> Isolated | None:
    """Look for culprits in a rejected night; None where it was not rejected, the policy asks for none, or none help.

    Edits that are lost in serving are known by name and need no search: they are put aside, and what else stopped the night
    is looked for among the others. Subsets are judged on fewer probes, by value, under the rules that stopped the night. The
    rest is no more than a candidate: the ordinary gate decides on it. What an earlier run found is read, not looked for again.
    """
    policy = load_policy(settings.policy)
    if decision.verdict != "reject" or not policy.isolate_evaluations or len(done.edited) < 2:
        return None
    lost = _lost(done, report, decision)
    judged = _but_for_lost(decision) if lost else decision
    if told := hopeless(judged, len(done.edited)):
        log.warning("%s: no culprit is looked for, because none can be found: %s", done.night, "; ".join(told))
        return None
    kept = night_folder(settings, done.night) / "isolated.json"
    if kept.exists():
        found = Isolated.model_validate_json(kept.read_bytes())
        if found.rest.parent == done.parent and all(has_patch(settings, d) for d in found.rest.new_patches):
            return found
    with Asking(settings) as asking:
        trial = _Trial(settings, done, report, judged, policy, asking)
        isolation = _isolation(done, lost, trial, policy.isolate_evaluations)
        if isolation is None or not isolation.kept:
            return None
        how = report.environment.get("served", "").split(";")[0]
        culprits = tuple(
            Culprit(request_id=name, broken=0, probes=(), lost=how)
            if name in lost
            else trial.evidence(name, frozenset(isolation.kept))
            for name in isolation.culprits
        )
        result = Isolated(isolation=isolation, culprits=culprits, rest=trial.rest(isolation))
    write_whole(kept, canonical_json(result))
    return result


def _lost(done: Candidate, report: EvaluationReport, decision: GateDecision) -> frozenset[str]:
    """Edits of the night that are lost on the way to a server, where a rule that counts edits stopped it."""
    stopped = {r.rule.metric for r in decision.failed_rules if r.rule.on_fail == "reject"}
    return frozenset(report.environment.get(LOST, "").split()) & set(done.edited) if stopped & OF_EDITS else frozenset()


def _but_for_lost(decision: GateDecision) -> GateDecision:
    """The decision without the rule that fails because of edits that are put aside."""
    cured = ("served_agreement", "edits")
    rest = tuple(r for r in decision.results if r.passed or (r.rule.metric, r.rule.slice) != cured)
    return decision.model_copy(update={"results": rest})


def _isolation(done: Candidate, lost: frozenset[str], trial: _Trial, budget: int) -> Isolation | None:
    """The night without what is lost in serving and without the culprits among the rest; None where none can be found."""
    rest, night = tuple(name for name in done.edited if name not in lost), done.night
    if not rest:
        log.warning("%s: all %d edits are lost in serving; there is no rest to go on with", night, len(lost))
        return None
    # Of the rest it is not known whether it passes; the whole night was rejected.
    if not trial.rules or trial.passes(frozenset(rest)):
        if not lost:
            log.warning("%s: the reduced probes do not show what stopped it; no culprit can be looked for", night)
            return None
        found = Isolation(kept=rest, culprits=(), unexplored=(), evaluations=0, exact=True, smallest=True)
    elif told := trial.fails_without():
        log.warning(
            "%s: no culprit is looked for: what is served now fails without any edit of the night: %s. Look for the "
            "edits of earlier nights (`errata log`), or roll back",
            night,
            " ".join(told),
        )
        return None
    else:
        found = isolate(rest, trial.passes, budget)
    log.warning(
        "%s: %d lost in serving, %d culprits, %d unexplored, %d evaluations",
        night,
        len(lost),
        len(found.culprits),
        len(found.unexplored),
        found.evaluations,
    )
    if not lost:
        return found
    culprits = tuple(name for name in done.edited if name in lost or name in found.culprits)
    # What is lost was seen in the whole night alone, not beside what is kept.
    return found.model_copy(update={"culprits": culprits, "exact": False, "smallest": False})


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
        self.rules = tuple(stopped)
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
