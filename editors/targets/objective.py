"""The rows and terms of the value optimisation: target, stop, essence and kept relations, read from one packed pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor, nn

from editors.architectures.anatomy import Head
from editors.asking.subjects import place_of
from editors.asking.tokens import continuation_of
from editors.errors import InvalidRequest
from editors.mechanics.contexts import Contexts, LookupRow, encode_lookups
from editors.mechanics.settings import LocateEditConfig
from editors.mechanics.suffix import Suffix, SuffixParts, in_parts, suffix_of
from editors.model import EditableModel
from editors.targets.beginnings import Beginnings, trace_rows
from warehouse.records import EditRequest


class Kind(IntEnum):
    """What is read at a position."""

    TARGET = 0  # NLL of a target token
    STOP = 1  # NLL of the tokens that end an answer, together
    ESSENCE = 2  # KL(edited || base) at the lookup token of "subject is a", as in ROME's code
    KEPT = 3  # KL(base || edited) behind another relation's prompt: the base's answer must stay likely


@dataclass(frozen=True)
class EncodedEdit:
    """The rows of one edit, the bare prompt first, and the kind of each (TARGET, ESSENCE or KEPT)."""

    rows: tuple[LookupRow, ...]
    kinds: tuple[Kind, ...]

    @property
    def suffix_tokens(self) -> int:
        return max(len(r.ids) - r.lookup for r in self.rows)


def encode_edits(
    model: EditableModel, requests: Sequence[EditRequest], contexts: Contexts, config: LocateEditConfig
) -> list[EncodedEdit]:
    """Tokenise all rows of all edits at once.

    Raises:
        InvalidRequest: an empty target, or a subject that is not in its prompt.
    """
    prompts: list[str] = []
    subjects: list[str] = []
    continuations: list[str] = []
    places: list[int] = []
    kinds: list[list[Kind]] = []
    for request in requests:
        if not request.target_new.strip():
            raise InvalidRequest(f"request {request.request_id} has an empty target; an edit needs an answer to write")
        texts = [(text, continuation_of(request.target_new), Kind.TARGET) for text in contexts.fill(request.prompt)]
        places += contexts.places(request.prompt, request.subject, model.tokenizer)
        texts += [(prompt, continuation_of(request.target_new), Kind.TARGET) for prompt in request.also]
        places += [place_of(prompt, request.subject, tokenizer=model.tokenizer) for prompt in request.also]
        if config.kl_weight:
            # Only the lookup token is read, so nothing behind the subject is needed.
            texts.append((request.subject, "", Kind.ESSENCE))
            places.append(0)
        if config.kept_weight:
            others = sorted(p for r, p in config.kept_prompts.items() if r != request.relation)
            texts += [(p.replace("{}", request.subject), "", Kind.KEPT) for p in others]
            places += [p.index("{}") for p in others]
        prompts += [t for t, _, _ in texts]
        continuations += [c for _, c, _ in texts]
        subjects += [request.subject] * len(texts)
        kinds.append([k for _, _, k in texts])
    rows = encode_lookups(model, prompts, subjects, continuations, places=places)
    edits, at = [], 0
    for own in kinds:
        edits.append(EncodedEdit(tuple(rows[at : at + len(own)]), tuple(own)))
        at += len(own)
    return edits


@dataclass(frozen=True)
class Terms:
    """Value of the objective's parts for each edit: cost (edits,), smallest margin in logits (edits,)."""

    cost: Tensor
    margin: Tensor


@dataclass(frozen=True)
class Objective:
    """All edits of a chunk on cached states; a change per edit goes in, a cost per edit comes out.

    Attributes:
        suffix: the rows, from their lookup tokens on.
        edit: (rows,) the edit that a row belongs to.
        row, place, kind, label, weight: (reads,) where a distribution is read, what for, and how much it counts.
        base: (reads of the KL terms, vocab) base log-probabilities, in the order of those reads.
        base_norms: (edits,) norm of the base value.
        stops: (vocab,) tokens that end an answer.
    """

    suffix: Suffix | SuffixParts
    edit: Tensor
    row: Tensor
    place: Tensor
    kind: Tensor
    label: Tensor
    weight: Tensor
    base: Tensor
    base_norms: Tensor
    stops: Tensor
    final_norm: nn.Module
    head: Head
    decay: float

    def __call__(self, deltas: Tensor) -> Terms:
        """Cost and margin of (edits, d_model) changes; the gradient flows to `deltas` only."""
        logits = self.logits(deltas[self.edit])
        logp = logits.log_softmax(-1)
        cost = torch.zeros(len(self.row), device=logits.device)
        target, stop = self.kind == Kind.TARGET, self.kind == Kind.STOP
        cost = cost.index_put((target.nonzero()[:, 0],), -logp[target].gather(1, self.label[target][:, None])[:, 0])
        cost = cost.index_put((stop.nonzero()[:, 0],), -logp[stop][:, self.stops].logsumexp(-1))
        soft = self.kind >= Kind.ESSENCE
        now, was = logp[soft], self.base
        forward, backward = (was.exp() * (was - now)).sum(-1), (now.exp() * (now - was)).sum(-1)
        cost = cost.index_put((soft.nonzero()[:, 0],), torch.where(self.kind[soft] == Kind.KEPT, forward, backward))
        owner = self.edit[self.row]
        per_edit = torch.zeros(len(deltas), device=logits.device).index_add(0, owner, cost * self.weight)
        # Published form: the norm is not squared above the line.
        per_edit = per_edit + self.decay * torch.linalg.vector_norm(deltas, dim=1) / self.base_norms**2
        leads = self.leads(logits.detach()).masked_fill(soft, torch.inf)
        whole = torch.full((len(deltas),), torch.inf, device=logits.device)
        return Terms(per_edit, whole.scatter_reduce(0, owner, leads, "amin"))

    def logits(self, changes: Tensor) -> Tensor:
        """(reads, vocab) fp32 with `changes` (rows, d_model), a change for each row."""
        hidden = self.suffix.run(changes)
        return self.head(self.final_norm(hidden[self.row, self.place])).float()

    def leads(self, logits: Tensor) -> Tensor:
        """(reads,) by how many of `logits` (reads, vocab) what must be said leads the next best.

        That is the target's token, any token that ends an answer, and of the KL terms the base's first choice.
        """
        stop, soft = self.kind == Kind.STOP, self.kind >= Kind.ESSENCE
        label = self.label.index_put((soft.nonzero()[:, 0],), self.base.argmax(-1))
        values, ids = logits.topk(2, dim=-1)
        rival = torch.where(ids[:, 0] == label, values[:, 1], values[:, 0])
        leads = logits.gather(1, label[:, None])[:, 0] - rival
        ends = logits[stop]
        return leads.index_put((stop.nonzero()[:, 0],), ends[:, self.stops].amax(-1) - ends[:, ~self.stops].amax(-1))

    def in_parts(self) -> Objective:
        """The same, with rows of like width run together where that spares enough."""
        assert isinstance(self.suffix, Suffix)
        needed = torch.zeros_like(self.edit).scatter_reduce(0, self.row, self.place + 1, "amax")
        return replace(self, suffix=in_parts(self.suffix, needed))

    def select(self, edits: Tensor) -> Objective:
        """The same for some of the edits, given as a mask (edits,)."""
        kept = self.select_rows(edits[self.edit])
        number = edits.cumsum(0) - 1
        return replace(kept, edit=number[kept.edit], base_norms=self.base_norms[edits])

    def select_rows(self, rows: Tensor) -> Objective:
        """The same edits with some of their rows, given as a mask (rows,)."""
        reads, number = rows[self.row], rows.cumsum(0) - 1
        return replace(
            self,
            suffix=self.suffix.select(rows.nonzero()[:, 0]),
            edit=self.edit[rows],
            row=number[self.row[reads]],
            place=self.place[reads],
            kind=self.kind[reads],
            label=self.label[reads],
            weight=self.weight[reads],
            base=self.base[reads[self.kind >= Kind.ESSENCE]],
        )


@torch.no_grad()
def build_objective(
    model: EditableModel,
    encoded: Sequence[EncodedEdit],
    layer: int,
    site_path: str,
    config: LocateEditConfig,
    beginnings: Beginnings | None = None,
) -> tuple[Objective, Tensor]:
    """Run all rows once through the whole model and cut them to what the optimisation needs.

    Args:
        beginnings: what rows of earlier calls began with; None: nothing is kept from call to call.
        site_path: the module whose output at the bare prompt's lookup token is the base value, and is changed.

    Returns:
        The objective, and the base values (edits, d_model).
    """
    anatomy, depth = model.anatomy, model.anatomy.num_layers(model.hf)
    rows = [row for e in encoded for row in e.rows]
    kinds = [kind for e in encoded for kind in e.kinds]
    owner = [i for i, e in enumerate(encoded) for _ in e.rows]
    site, block = site_path.format(layer=layer), anatomy.block.format(layer=layer)
    above = [anatomy.block.format(layer=i) for i in range(layer + 1, depth)]
    seen = trace_rows(model, rows, beginnings or Beginnings(), outputs=(site, block), calls=above)
    device = seen.outputs[block].device
    lookup = torch.tensor([r.lookup for r in rows], device=device)
    ends = torch.tensor([len(r.ids) for r in rows], device=device)
    first = torch.tensor([kinds.index(Kind.TARGET, owner.index(i)) for i in range(len(encoded))], device=device)
    base_values = seen.outputs[site][first, lookup[first]].float()
    reads: list[tuple[int, int, Kind, int, float]] = []
    for number, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
        if kind is Kind.TARGET:
            labels = row.ids[row.start :]
            contexts = sum(k is Kind.TARGET for k in encoded[owner[number]].kinds)
            share = 1 / (contexts * (len(labels) + config.include_stop))
            reads += [(number, row.start - 1 + k, kind, label, share) for k, label in enumerate(labels)]
            if config.include_stop:
                reads.append((number, len(row.ids) - 1, Kind.STOP, 0, share))
        elif kind is Kind.ESSENCE:
            reads.append((number, row.lookup, kind, 0, config.kl_weight))
        else:
            reads.append((number, len(row.ids) - 1, kind, 0, config.kept_weight / config.kept_count))
    head, final_norm = model.head, model.hf.get_submodule(anatomy.final_norm)
    read_row = torch.tensor([r for r, *_ in reads], device=device)
    read_at = torch.tensor([p for _, p, *_ in reads], device=device)
    kind_of = torch.tensor([int(k) for _, _, k, *_ in reads], device=device)
    soft = kind_of >= Kind.ESSENCE
    assert seen.final is not None
    base = head(seen.final[read_row[soft], read_at[soft]]).float().log_softmax(-1)
    marked = _where_named(rows, seen.outputs[block].shape[1])
    written = None if site_path == anatomy.block else seen.outputs[site]
    if written is not None and marked is None:
        written = written[torch.arange(len(rows), device=device), lookup]
    suffix = suffix_of(model, seen, layer, lookup, ends, written, marked)
    # A clone: `stops` may have been made in inference mode, which autograd cannot read.
    stops = model.stops.to(device).clone()
    objective = Objective(
        suffix,
        torch.tensor(owner, device=device),
        read_row,
        read_at - lookup[read_row],
        kind_of,
        torch.tensor([label for *_, label, _ in reads], device=device),
        torch.tensor([share for *_, share in reads], device=device),
        base,
        base_values.norm(dim=1),
        stops,
        final_norm,
        head,
        config.value_decay,
    )
    return _most_confident(objective, config.kept_count), base_values


def _where_named(rows: Sequence[LookupRow], tokens: int) -> Tensor | None:
    """(rows, tokens) True where a row names its subject; None where each does so once."""
    if not any(row.again for row in rows):
        return None
    named = torch.zeros(len(rows), tokens, dtype=torch.bool)
    for number, row in enumerate(rows):
        named[number, [row.lookup, *row.again]] = True
    return named


def _most_confident(objective: Objective, count: int) -> Objective:
    """Of each edit's kept prompts only the `count` that the base answers with the highest top probability."""
    kept = (objective.kind == Kind.KEPT).nonzero()[:, 0]
    if not len(kept):
        return objective
    top = objective.base[objective.kind[objective.kind >= Kind.ESSENCE] == Kind.KEPT].amax(-1)
    owner = objective.edit[objective.row[kept]]
    drop = torch.zeros(len(objective.edit), dtype=torch.bool, device=kept.device)
    for edit in range(len(objective.base_norms)):
        own = (owner == edit).nonzero()[:, 0]
        drop[objective.row[kept[own[top[own].argsort(descending=True)[count:]]]]] = True
    return objective.select_rows(~drop)
