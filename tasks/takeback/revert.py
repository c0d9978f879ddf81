"""Make the candidate of a revert: what is served without some edits, then measured and gated as any other night's."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from prefect import task

from editors.base import Editor, Patch, Prepared, retracting
from editors.catalogue import can_retract
from editors.errors import PatchError
from editors.model import EditableModel
from editors.patches.files import save_patch
from editors.patches.weight import WeightPatch
from editors.session import batch_of
from tasks.candidate import Candidate, TakenOut, edited_before, keep_edited
from tasks.reporting.publish_report import EXAMPLE_TOKENS, NUM_EXAMPLES
from tasks.reporting.report_page import night_markdown
from tasks.serving.models import at_checkpoint, base_model, head_manifest, patch_folder, stored_patch
from tasks.serving.prepare import editor_of, preparation_of
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.takeback.plan import RevertPlan, requests_in_force
from tasks.workspace import report_folder, store_of, warehouse
from warehouse.errors import Conflict
from warehouse.lineages.chain import checkpoint
from warehouse.lineages.edits import PatchRow, active_edits, edits_of, ledger_row, record_batches, record_edits, save_patches
from warehouse.nights.intake import requests_by_id
from warehouse.records import Checkpoint, Edit, EditBatch, EditRequest, Manifest
from warehouse.world.forms import told

log = logging.getLogger(__name__)
#: Edits still in force, the newest, that are probed as a night's own are: enough for the rules that count edits.
NUM_MEASURED = 30


@dataclass
class _Stack:
    """The candidate's patches as they are put together on the model, and the ledger's rows of what is new."""

    settings: Settings
    night: str
    editor: Editor
    prepared: Prepared
    model: EditableModel
    digests: list[str] = field(default_factory=list)
    rows: list[PatchRow] = field(default_factory=list)
    batches: list[EditBatch] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    remade: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def keep(self, patch: Patch) -> None:
        """Put on a patch that the head has."""
        self.model.push(patch)
        self.digests.append(patch.digest)

    def add(self, patch: Patch, editor: str) -> None:
        """Put on a patch that is new."""
        save_patch(patch, patch_folder(self.settings, patch.digest))
        self.rows.append(PatchRow(patch_digest=patch.digest, kind=patch.kind, editor=editor, bytes=patch.num_bytes))
        self.keep(patch)

    def edit(self, requests: list[EditRequest]) -> None:
        """Edit the model as it stands, as a night would."""
        batch, start = batch_of(requests), time.perf_counter()
        patch = self.editor.edit(self.model, batch, self.prepared)
        self.seconds += time.perf_counter() - start
        self.add(patch, self.editor.card.name)
        for request in requests:
            self.enter(request, batch, self.editor.card.name, self.editor.config.digest, patch.digest)

    def enter(self, request: EditRequest, batch: EditBatch, editor: str, config: str, patch: str) -> None:
        """A ledger row; the night is in its id, for the same patch may have been made and rejected before."""
        if batch not in self.batches:
            self.batches.append(batch)
        self.edits.append(ledger_row(request, batch, editor, config, patch, self.night))


@task(name="take out", **STEP)
def take_out(settings: Settings, plan: RevertPlan) -> Candidate:
    """The head's patches without the plan's edits. What an earlier run made is read, not made again.

    An edit of an editor that retracts is retracted, which is exact. A patch of another editor leaves with its last edit; one
    that holds more is made again without it, on the patches below it, and later patches go on top as they are (or are
    made again too, where they cannot stand there).

    Raises:
        Conflict: the lineage moved, or a patch would have to be made again by another editor or other settings.
    """
    done = edited_before(settings, plan.night)
    if done is not None:
        return done
    store = store_of(settings)
    manifest = head_manifest(settings, store)
    if manifest is None or manifest.checkpoint.checkpoint_id != plan.head:
        found = manifest.checkpoint.checkpoint_id[:12] if manifest else "the base"
        raise Conflict(f"lineage moved: {settings.lineage!r} serves {found}, not {plan.head[:12]}; ask for the revert again")
    head = manifest.checkpoint
    base = base_model(settings)
    editor = editor_of(settings, base)
    prepared = preparation_of(settings, editor, base)
    with warehouse(settings) as wh:
        active = active_edits(wh, settings.lineage)
        lines = {line.edit.edit_id: line.edit for line in edits_of(wh, settings.lineage)}
    stack = _Stack(settings, plan.night, editor, prepared, base)
    going = set(plan.edits)
    able = {name for name in {edit.editor for edit, _ in active} if can_retract(name)}
    retracted = {edit.edit_id for edit, _ in active if edit.editor in able} & going
    _rebuild(stack, head, active, going - retracted)
    with warehouse(settings) as wh:
        back = requests_by_id(wh, [lines[i].request_id for i in plan.revived])
    revived = [(lines[i], request) for i, request in zip(plan.revived, back, strict=True)]
    _retract(stack, [pair for pair in active if pair[0].edit_id in retracted], revived)
    for edit, request in revived:
        if request.request_id not in {e.request_id for e in stack.edits}:
            # Its patch never left; only the one on top of it did.
            stack.enter(request, batch_of([request]), edit.editor, edit.config_digest, edit.patch_digest)
    if not stack.rows:
        # The list without a patch may be an earlier checkpoint's: this one has a place of its own in the lineage.
        stack.add(WeightPatch({}, {"night": plan.night, "reverts": sorted(plan.edits)}), editor.card.name)
    done = _edited(plan, stack, head)
    with warehouse(settings) as wh, wh.transaction():
        entered = set(done.edited)
        left = [r.request_id for r in requests_in_force(wh, settings.lineage, plan.edits) if r.request_id not in entered]
        measured = tuple(left[: max(0, NUM_MEASURED - len(entered))])
        done = done.model_copy(update={"revert": done.revert.model_copy(update={"measured": measured})})
        save_patches(wh, stack.rows)
        record_batches(wh, settings.lineage, plan.night, editor.card.name, stack.batches)
        record_edits(wh, settings.lineage, plan.night, stack.edits)
    keep_edited(settings, done)
    log.info("%s: %d edits out, %d made again, %d in force again", plan.night, len(going), len(stack.remade), len(revived))
    return done


def _rebuild(stack: _Stack, head: Checkpoint, active: list[tuple[Edit, EditRequest]], going: set[str]) -> None:
    """The head's patches in order, without those edits."""
    held: dict[str, list[tuple[Edit, EditRequest]]] = defaultdict(list)
    for edit, request in active:
        held[edit.patch_digest].append((edit, request))
    store, changed = store_of(stack.settings), False
    for digest in head.patch_digests:
        patch = stored_patch(stack.settings, store, digest)
        stay = [(e, r) for e, r in held[digest] if e.edit_id not in going]
        if len(stay) == len(held[digest]):
            try:
                stack.keep(patch)
                continue
            except PatchError:
                if not changed:
                    raise
        changed = True
        if stay:
            _make_again(stack, digest, stay)


def _make_again(stack: _Stack, digest: str, stay: list[tuple[Edit, EditRequest]]) -> None:
    editor = stack.editor
    wanted = {(editor.card.name, editor.config.digest)}
    if {(e.editor, e.config_digest) for e, _ in stay} != wanted:
        raise Conflict(
            f"patch {digest[:12]} holds {len(stay)} edits that stay and would have to be made again, but it was made by "
            f"{stay[0][0].editor} with settings {stay[0][0].config_digest[:12]}, and {editor.card.name} with "
            f"{editor.config.digest[:12]} is configured; configure those, or revert the whole checkpoint"
        )
    stack.edit([r for _, r in stay])
    stack.remade += [e.edit_id for e, _ in stay]


def _retract(stack: _Stack, going: list[tuple[Edit, EditRequest]], revived: list[tuple[Edit, EditRequest]]) -> None:
    """Take edits out by their editor; where the earlier edit of a slot is in force again, that one takes its place."""
    if not going:
        return
    editor, makers = retracting(stack.editor), sorted({e.editor for e, _ in going})
    if editor is None or makers != [editor.card.name] or {e.config_digest for e, _ in going} != {editor.config.digest}:
        raise Conflict(
            f"these edits are of the editor {' and '.join(makers)}; configure it with the settings that they were made with"
        )
    back = [r for e, r in revived if e.editor == editor.card.name]
    refilled = {(r.subject, r.relation) for r in back}
    out = [r.request_id for _, r in going if (r.subject, r.relation) not in refilled]
    if out:
        start = time.perf_counter()
        patch = editor.retract(stack.model, out, stack.prepared)
        stack.seconds += time.perf_counter() - start
        stack.add(patch, editor.card.name)
    if back:
        stack.edit(back)


def _edited(plan: RevertPlan, stack: _Stack, head: Checkpoint) -> Candidate:
    same = 0
    while same < min(len(stack.digests), len(head.patch_digests)) and stack.digests[same] == head.patch_digests[same]:
        same += 1
    return Candidate(
        night=plan.night,
        editor=stack.editor.card.name,
        config_digest=stack.editor.config.digest,
        parent=plan.head,
        base_digest=stack.model.base_digest,
        parent_patches=tuple(stack.digests[:same]),
        new_patches=tuple(stack.digests[same:]),
        edited=tuple(e.request_id for e in stack.edits),
        skipped=(),
        right_after=(),
        edit_seconds=round(stack.seconds, 3),
        patch_bytes=sum(r.bytes for r in stack.rows),
        revert=TakenOut(reverted=plan.edits, remade=tuple(stack.remade), reason=plan.reason),
    )


@task(name="report of a revert", **STEP)
def publish_revert(settings: Settings, done: Candidate, manifest: Manifest) -> Path:
    """`summary.md` of a revert: what left, what was made again, and what both models say of it."""
    with warehouse(settings) as wh:
        edits = {line.edit.edit_id: line.edit for line in edits_of(wh, settings.lineage)}
        gone = requests_by_id(wh, [edits[i].request_id for i in done.revert.reverted[:NUM_EXAMPLES]])
        before = checkpoint(wh, done.before)
    store, prompts = store_of(settings), [r.prompt for r in gone]
    now = at_checkpoint(settings, store, done).generate(prompts, EXAMPLE_TOKENS)
    was = at_checkpoint(settings, store, before).generate(prompts, EXAMPLE_TOKENS)
    examples = [
        {"prompt": told(r.prompt), "before": b, "after": a, "wanted": f"not {r.target_new}"}
        for r, b, a in zip(gone, was, now, strict=True)
    ]
    text = night_markdown(
        f"Revert {done.night} on lineage {settings.lineage}: {manifest.verdict}",
        {
            "checkpoint": manifest.checkpoint.checkpoint_id,
            "parent": done.parent,
            "why": done.revert.reason,
            "edits out": ", ".join(done.revert.reverted),
            "edits whose patch was made again": len(done.revert.remade),
            "policy digest": manifest.decision.policy_digest,
        },
        (),
        manifest.report,
        manifest.decision,
        examples,
    )
    path = report_folder(settings, done.night) / "summary.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
