"""Apply a night's accepted requests to the head of the lineage, and keep the patches."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from prefect import task

from checks.evaluation import predict
from checks.predictor import Question
from editors.base import Editor, Prepared
from editors.catalogue import editor_class
from editors.model import EditableModel
from editors.patches.files import save_patch
from editors.session import run_edits
from tasks.candidate import Candidate, edited_before, keep_edited
from tasks.serving.models import at_checkpoint, base_model, head_manifest, patch_folder
from tasks.serving.prepare import editor_of, preparation_of
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.workspace import WarehouseCache, store_of, warehouse
from warehouse.database.connection import Warehouse
from warehouse.lineages.edits import PatchRow, ledger_row, record_batches, record_edits, save_patches
from warehouse.nights.held_edits import join_held
from warehouse.nights.intake import requests_of
from warehouse.records import Edit, EditBatch, EditRequest, Prediction, Probe, ProbeKind
from warehouse.world.probes import make_probe
from warehouse.world.queries import additional_values

log = logging.getLogger(__name__)


def edit_probes(requests: tuple[EditRequest, ...]) -> list[Probe]:
    """The probes of SR and GR of a batch; equal questions have equal ids wherever they are asked."""
    return [
        make_probe(kind, prompt, [r.target_new], r.request_id)
        for r in requests
        for kind, prompts in asked_of(r)
        for prompt in prompts
    ]


def asked_of(request: EditRequest) -> tuple[tuple[ProbeKind, tuple[str, ...]], ...]:
    """What a request is asked right after its edit, by kind of probe."""
    return (
        ("success", (request.prompt,)),
        ("also", request.also),
        ("rephrase", request.rephrases),
        ("carry_over", request.carry_over),
    )


def choose_requests(
    model: EditableModel, requests: list[EditRequest], additional: set[str]
) -> tuple[list[EditRequest], list[tuple[str, str]]]:
    """Requests to edit, and those left alone with the reason."""
    answers = model.score([Question(r.prompt, r.target_new) for r in requests])
    chosen, skipped = [], []
    for request, answer in zip(requests, answers, strict=True):
        if request.request_id in additional:
            skipped.append((request.request_id, "additional_value"))
        elif answer.exact:
            skipped.append((request.request_id, "no_op"))
        else:
            chosen.append(request)
    return chosen, skipped


@task(name="edit", **STEP)
def edit(settings: Settings, night: str) -> Candidate:
    """Edit the lineage's head with the night's requests. A finished edit of this head is read, not made again.

    Raises:
        UnsupportedMode: the night is larger than the editor's batches and no batch size was set.
        PatchError: a patch of the lineage is damaged.
    """
    store = store_of(settings)
    manifest = head_manifest(settings, store)
    head = manifest.checkpoint if manifest else None
    done = edited_before(settings, night)
    editor_name = editor_class(settings.editor.name).card.name
    if done is not None and done.editor == editor_name and done.parent == (head.checkpoint_id if head else None):
        return done
    base = base_model(settings)
    editor = editor_of(settings, base)
    prepared = preparation_of(settings, editor, base)
    model = at_checkpoint(settings, store, head)
    with warehouse(settings) as wh:
        requests, additional = requests_of(wh, night), additional_values(wh, night)
        released, stale = join_held(wh, settings.lineage, night)
    joined = tuple(r.request_id for r in released)
    requests += [r for r in (*released, *stale) if r not in requests]
    chosen, skipped = choose_requests(model, [r for r in requests if r not in stale], additional)
    skipped += [(r.request_id, "released, but a newer request stands") for r in stale]
    made = make_edits(settings, editor, prepared, model, chosen, night, joined)
    done = Candidate(
        night=night,
        editor=editor.card.name,
        config_digest=editor.config.digest,
        parent=head.checkpoint_id if head else None,
        base_digest=model.base_digest,
        parent_patches=head.patch_digests if head else (),
        new_patches=tuple(r.patch_digest for r in made.rows),
        edited=tuple(r.request_id for r in chosen),
        skipped=tuple(skipped),
        right_after=made.right_after,
        edit_seconds=round(made.seconds, 3),
        patch_bytes=sum(r.bytes for r in made.rows),
        joined=joined,
    )
    # By head: what a model says already depends on the model, and a night that was overtaken begins again on another.
    skipped_id = f"skipped-{night}" if head is None else f"skipped-{night}-{head.checkpoint_id[:12]}"
    skipped_batch = EditBatch(batch_id=skipped_id, requests=tuple(r for r in requests if r not in chosen))
    with warehouse(settings) as wh, wh.transaction():
        record_made(settings, wh, night, made, [skipped_batch])
        why = dict(skipped)
        for request in skipped_batch.requests:
            again = night if request in released or request in stale else ""
            row = ledger_row(request, skipped_batch, editor.card.name, editor.config.digest, "", again)
            record_edits(wh, settings.lineage, night, [row], status="skipped", reason=why[request.request_id])
    keep_edited(settings, done)
    return done


@dataclass(frozen=True)
class Made:
    """What editing a model left: batches, patches (saved) and ledger rows, not yet in the warehouse."""

    editor: str
    batches: tuple[EditBatch, ...]
    rows: tuple[PatchRow, ...]
    edits: tuple[Edit, ...]
    right_after: tuple[Prediction, ...]
    seconds: float


def batch_size(settings: Settings, editor: Editor, requests: int) -> int:
    """Requests of one batch of a night."""
    size = settings.editor.batch_size or requests or 1
    return size if editor.card.max_batch is None else min(size, editor.card.max_batch)


def make_edits(
    settings: Settings,
    editor: Editor,
    prepared: Prepared,
    model: EditableModel,
    chosen: list[EditRequest],
    night: str,
    joined: Collection[str] = (),
) -> Made:
    """Edit the model as it stands in a night's batches, and save the patches; the model keeps them.

    Args:
        joined: requests among `chosen` that an earlier night had edited too: their ledger rows name this night.
    """
    size = batch_size(settings, editor, len(chosen))
    mode = "sequential" if size == 1 else "sequential-batch"
    batches: list[EditBatch] = []
    rows: list[PatchRow] = []
    edits: list[Edit] = []
    right_after: dict[str, Prediction] = {}
    seconds = 0.0
    for step in run_edits(editor, model, chosen, prepared, mode=mode, batch_size=size):
        save_patch(step.patch, patch_folder(settings, step.patch.digest))
        batches.append(step.batch)
        rows.append(
            PatchRow(patch_digest=step.patch.digest, kind=step.patch.kind, editor=editor.card.name, bytes=step.patch.num_bytes)
        )
        edits += [
            ledger_row(
                r,
                step.batch,
                editor.card.name,
                editor.config.digest,
                step.patch.digest,
                night if r.request_id in joined else "",
            )
            for r in step.batch.requests
        ]
        if size < len(chosen):
            right_after |= predict(model, edit_probes(step.batch.requests), WarehouseCache(settings))
        seconds += step.seconds
        log.info("%s: batch of %d edited in %.1f s", editor.card.name, len(step.batch.requests), step.seconds)
    return Made(editor.card.name, tuple(batches), tuple(rows), tuple(edits), tuple(right_after.values()), seconds)


def record_made(settings: Settings, wh: Warehouse, night: str, made: Made, more: Sequence[EditBatch] = ()) -> None:
    """Enter patches, batches and edits; the same again adds nothing."""
    save_patches(wh, made.rows)
    record_batches(wh, settings.lineage, night, made.editor, [*made.batches, *more])
    record_edits(wh, settings.lineage, night, made.edits)
