"""Frozen records: everything that crosses a file, a database or a flow parameter. No tensor in them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from warehouse.digests import digest_of


class Record(BaseModel):
    """Immutable; an unknown field is an error, so a misspelt one cannot pass in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# ---------------------------------------------------------------- facts and updates


class Entity(Record):
    """An item with its label: `id` is a Q-id, or empty where the source has only text."""

    id: str = ""
    label: str


class Fact(Record):
    """One triple that was, is or will be true; `valid_to` None means still open."""

    subject_id: str
    subject: str
    relation: str
    object_id: str
    object: str
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    source: str


class UpdateRecord(Record):
    """A source record exactly as received: `raw` is its JSON text, also where that text is broken."""

    record_id: str
    source: str
    night: str
    received_at: datetime | None
    raw: str


EditKind = Literal["insert", "modify", "erase"]
#: Left out where there are none: requests of before the forms keep their digests.
Unasked: Any = Field(default=(), exclude_if=lambda value: not value)


class EditRequest(Record):
    """What an editor is asked to do. `prompt` contains `subject` and ends where `target_new` begins (no space).

    `other_relations`: in which the warehouse has a value for the subject, of before the update; an editor may protect them.
    It is not told the values.

    Where a model is asked in several forms (`warehouse.world.forms`), `prompt` is the fact in the first of them. `also`: the
    same in the others, edited and asked like `prompt`. `wordings`: other wordings, in all of them, that an editor may learn
    from and that nothing asks. `rephrases`: wordings that are asked and that no editor may learn from. `carry_over`: wordings
    in a form that the model is poor in, asked apart.
    """

    request_id: str
    prompt: str
    subject: str
    relation: str
    target_new: str
    target_true: str | None = None
    rephrases: tuple[str, ...] = ()
    source: str = ""
    received_at: datetime | None = None
    subject_id: str = ""
    target_new_id: str = ""
    kind: EditKind = "modify"
    other_relations: tuple[str, ...] = ()
    also: tuple[str, ...] = Unasked
    wordings: tuple[str, ...] = Unasked
    carry_over: tuple[str, ...] = Unasked

    @property
    def measured(self) -> tuple[str, ...]:
        """The wordings that measure the edit: no editor may learn from them."""
        return (*self.rephrases, *self.carry_over)


VerdictName = Literal["accept", "supersede", "merge_duplicate", "reject", "quarantine"]


class Verdict(Record):
    """What became of one update record, why, and on what evidence."""

    record_id: str
    verdict: VerdictName
    reason: str
    rule: str
    confidence: Literal["hard", "soft"] = "hard"
    sentence: str
    related: tuple[str, ...] = ()
    request_id: str | None = None


class EditBatch(Record):
    batch_id: str
    requests: tuple[EditRequest, ...]


class Edit(Record):
    """One ledger row: this request was applied by this editor in this patch."""

    edit_id: str
    request_id: str
    batch_id: str
    editor: str
    config_digest: str
    patch_digest: str
    applied_at: datetime


# ---------------------------------------------------------------- probes and scores

ProbeKind = Literal[
    "success",
    "also",
    "rephrase",
    "carry_over",
    "neighbourhood",
    "relation_specificity",
    "forgetfulness",
    "unrelated",
    "alias",
    "one_hop",
    "logical",
    "obsolete",
    "retain",
    "drawdown",
    "held_text",
]


class Probe(Record):
    """One question with its accepted answers (`held_text`: the prompt is the text, no answer)."""

    probe_id: str
    kind: ProbeKind
    prompt: str
    targets: tuple[str, ...] = ()
    request_id: str | None = None


class ProbeSet(Record):
    name: str
    version: int
    probes: tuple[Probe, ...]
    digest: str


class Prediction(Record):
    """What one model state answers to one probe; cached by both digests."""

    model_digest: str
    probe_id: str
    exact: bool
    token_accuracy: float
    log_prob: float
    text: str


class Score(Record):
    """A measured value with its 95% interval over `n` probes (or edits, or texts)."""

    metric: str
    slice: str = ""
    value: float | None
    low: float | None
    high: float | None
    n: int


class EvaluationReport(Record):
    report_id: str
    before: str
    after: str
    probe_set_digest: str
    scores: tuple[Score, ...]
    environment: dict[str, str] = Field(default_factory=dict)


# ---------------------------------------------------------------- gates

GateOutcome = Literal["promote", "reject", "hold"]


class GateRule(Record):
    """`value op threshold` must hold. `judge` interval: the unfavourable end of the interval must clear the bar."""

    metric: str
    slice: str = ""
    op: Literal[">=", "<="]
    threshold: float
    on_fail: Literal["reject", "hold", "warn"] = "reject"
    judge: Literal["interval", "point"] = "interval"
    min_n: int = 1


class GatePolicy(Record):
    """`allow_unsigned`: a checkpoint may be promoted without a signature; else one needs a key.

    `isolate_evaluations`: most subsets of a rejected night that are evaluated to find its culprits; 0: none, it stays
    rejected whole.
    `on_lineage_moved`: what a night does whose lineage was moved by somebody else before it could move it. stop: it
    ends, and can be run again; rebase: it is edited, evaluated and gated again on what is served now.
    """

    name: str
    version: int
    rules: tuple[GateRule, ...]
    allow_unsigned: bool = False
    isolate_evaluations: int = Field(default=0, ge=0)
    # Left out at its default: policies that were signed off before it existed keep their digest.
    on_lineage_moved: Literal["stop", "rebase"] = Field(default="stop", exclude_if=lambda value: value == "stop")


class RuleResult(Record):
    """One rule held against one score; `passed` False also where nothing could be measured."""

    rule: GateRule
    score: Score | None
    passed: bool
    explanation: str


class GateDecision(Record):
    decision_id: str
    report_id: str
    policy_digest: str
    verdict: GateOutcome
    results: tuple[RuleResult, ...]
    decided_at: datetime

    @property
    def failed_rules(self) -> tuple[RuleResult, ...]:
        return tuple(r for r in self.results if not r.passed)


# ---------------------------------------------------------------- checkpoints and runs


def checkpoint_id(base_digest: str, patch_digests: Sequence[str] = ()) -> str:
    """Identity of a checkpoint: the base's digest, then those of its patches in order; without any, of the base itself.

    Parent, names, revision and time are no part of it: equal ids mean equal weights.
    """
    return digest_of(base_digest, list(patch_digests))


class Checkpoint(Record):
    """A base revision and an ordered list of patches; `checkpoint_id` is the digest of both."""

    checkpoint_id: str
    parent: str | None
    base_model: str
    base_revision: str
    base_digest: str
    patch_digests: tuple[str, ...]
    created_at: datetime


def base_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """The unedited base that a checkpoint stands on, as the first one of a lineage."""
    return checkpoint.model_copy(
        update={"checkpoint_id": checkpoint_id(checkpoint.base_digest), "parent": None, "patch_digests": ()}
    )


class Canary(Record):
    """One question that shows which checkpoint a server answers from.

    Attributes:
        kind: `edit`: an edit in force, or one that was taken out; `bystander`: what no edit may touch.
        form: the form that the prompt stands in (`warehouse.world.forms`); empty where the model is asked plainly.
        expected: what the promoted checkpoint answers, greedily; without the space before it.
        previous, base: what the checkpoint before it, and the base, answer where that is something else.
        since: of an edit, the first checkpoint that had it.
    """

    kind: Literal["edit", "bystander"]
    prompt: str
    form: str
    expected: str
    previous: str | None = None
    base: str | None = None
    since: str | None = None


class CanarySet(Record):
    """What a server of a promoted checkpoint is asked, and what it must answer; beside the manifest, under its digest.

    Attributes:
        line: the checkpoints that it stands on, oldest first: the base, and then all that were served (of a long line the
            last ones); the last is the one before it.
        max_tokens: of each answer.
    """

    checkpoint_id: str
    line: tuple[str, ...]
    max_tokens: int
    canaries: tuple[Canary, ...]


#: Left out of manifests of before, which keep their digests.
OfLaterReleases: Any = Field(default=None, exclude_if=lambda value: value is None)


class EngineFacts(Record):
    """What a serving engine has to know of a checkpoint's folder, and what its tensors must be.

    Attributes:
        model_class: class of the configuration (`architectures`).
        dtype: of the stored tensors; several by number.
        widths: width of the feed-forward, for each layer; one number where all are equal.
        tokenizer: sha256 of `tokenizer.json`, or over all tokenizer files where there is none.
        forms: in which the model is asked; empty: plainly.
        tensors: name -> sha256 of its bytes as the file has them.
        room: columns that are reserved beside the base's own, those in use, and the next width; None where there are none.
        held: name in vLLM -> sha256, of tensors that it holds otherwise than the file: see `tasks/proving/weights.py`.
    """

    model_class: str
    dtype: str
    widths: tuple[int, ...]
    tokenizer: str
    forms: tuple[str, ...] = ()
    tensors: dict[str, str]
    room: str | None = OfLaterReleases
    #: Left out where it is empty, as in manifests of before.
    held: dict[str, str] = Field(default_factory=dict, exclude_if=lambda value: not value)


class Manifest(Record):
    """What the store keeps of a checkpoint, promoted or rejected: everything that it names is stored beside it.

    `canaries`: the digest of its `CanarySet`.
    """

    checkpoint: Checkpoint
    lineage: str
    night: str
    editor: str
    verdict: GateOutcome
    report: EvaluationReport
    decision: GateDecision
    files: dict[str, str] = Field(default_factory=dict, description="path in the store -> sha256")
    engine: EngineFacts | None = OfLaterReleases
    canaries: str | None = OfLaterReleases


class ChannelPointer(Record):
    """`channels/NAME.json`: which checkpoint a channel serves."""

    channel: str
    checkpoint_id: str
    manifest_digest: str
    parent: str | None
    moved_at: datetime


class NightRun(Record):
    """One line of `errata status`."""

    night: str
    lineage: str
    editor: str
    records: int
    accepted: int
    edited: int
    scores: dict[str, float | None]
    verdict: str
    checkpoint_id: str | None
    seconds: float
    details: dict[str, Any] = Field(default_factory=dict)
