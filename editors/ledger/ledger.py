"""The ledger editor: never edit the edited model; what is served is a function of the base and the set of active edits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import final

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from editors.base import NO_BENCH, Corpus, EditorCard, Patch, Prepared, RetractingEditor, Workbench
from editors.exact import on_grid
from editors.ledger.side_by_side import side_by_side
from editors.ledger.subject_filter import SubjectSpace, prepare_space, subject_states, wordings_for
from editors.ledger.subject_values import SubjectValueConfig, facts_of, group_by_subject, solve_subject, without
from editors.mechanics.answers import check_request
from editors.mechanics.passes import give_back
from editors.model import EditableModel
from editors.patches.slots import Slot, SlotBook, SlotPatch, slots_name
from editors.targets.beginnings import Beginnings
from editors.views import at_base
from warehouse.digests import digest_of
from warehouse.records import EditBatch, EditRequest


class LedgerConfig(SubjectValueConfig):
    """Settings of the slots; those of the value optimisation are `SubjectValueConfig`'s.

    Attributes:
        layer: whose feed-forward the slots stand beside: early, where a subject is recognised.
        key_wordings: prompts of any relation that the subject's filter is fitted to.
        bank_wordings, bank_tokens, bank_ridge: the space that filters keep silent in.
        filter_slack: how far a filter's answer to a form may stray from 1, relative to the forms' mean energy.
        own_quantile: the own answers' quantile that the thresholds count as the smallest.
        gap_share, ramp_share: see `editors.patches.slots.gates_of`.
    """

    layer: NonNegativeInt
    key_wordings: PositiveInt = 12
    bank_wordings: PositiveInt = 3
    bank_tokens: PositiveInt = 4_000
    bank_ridge: PositiveFloat = 1e-2
    filter_slack: PositiveFloat = 1e-2
    own_quantile: float = Field(default=0.1, ge=0, lt=1)
    gap_share: float = Field(default=0.5, gt=0, lt=1)
    ramp_share: float = Field(default=0.5, gt=0, le=1)


@final
class Ledger(RetractingEditor[LedgerConfig]):
    """A gated slot for each edited subject, at its last token in an early layer; ROME's place, GRACE's radius.

    Everything that a slot needs is computed from the base model alone, one subject at a time, so that neither order nor
    batching can show. Several edits of one subject share a slot, whose value is optimised for all of them together.
    """

    per_model = ("layer", "value_lr", "clamp_norm")
    card = EditorCard(
        name="ledger",
        title="Ledger (slots)",
        family="direct",
        patch_kind="module",
        paper="Errata's own: see docs/LEDGER.md",
        needs_preparation=True,
        retracts=True,
        only_xy=False,
        preserves_architecture=False,
        differs="Ours. Adding, superseding and retracting are exact; a value also keeps the subject's other relations.",
    )

    def __init__(self, config: LedgerConfig) -> None:
        super().__init__(config)
        # A value costs seconds and depends on nothing but the base, the settings and the subject's edits.
        self._solved: dict[str, Slot] = {}

    def preparation_key(self) -> str:
        c = self.config
        return digest_of("ledger", c.layer, c.bank_wordings, c.bank_tokens, c.bank_ridge, c.seed)

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """The space of known subjects and plain text at the site; see `prepare_space`."""
        c = self.config
        with at_base(model):
            return prepare_space(
                model,
                corpus,
                self._site(model),
                wordings=c.bank_wordings,
                tokens=c.bank_tokens,
                ridge=c.bank_ridge,
                seed=c.seed,
            )

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> SlotPatch:
        """See `Editor.edit`. An edit of a slot that has one replaces it; the subject's other edits stay."""
        for request in batch.requests:
            check_request(request)
        return self._patch(model, group_by_subject(self._active(model), batch.requests), prepared)

    def retract(self, model: EditableModel, request_ids: Sequence[str], prepared: Prepared) -> SlotPatch:
        """See `RetractingEditor.retract`."""
        return self._patch(model, without(self._active(model), request_ids), prepared)

    def remember(self, model: EditableModel, patch: Patch, prepared: Prepared) -> None:
        """See `RetractingEditor.remember`: the patch's slots count as solved."""
        if isinstance(patch, SlotPatch):
            self._solved |= {self._key(model, s.requests, prepared): s for s in patch.changes.values() if s is not None}

    def _key(self, model: EditableModel, requests: tuple[EditRequest, ...], prepared: Prepared) -> str:
        return digest_of(model.base_digest, self.config.digest, prepared.digest, facts_of(requests))

    def _site(self, model: EditableModel) -> str:
        model.anatomy.module(model.hf, model.anatomy.mlp, self.config.layer)  # refuses a layer that is not there
        return model.anatomy.mlp.format(layer=self.config.layer)

    def _active(self, model: EditableModel) -> dict[str, tuple[EditRequest, ...]]:
        book: SlotBook | None = model.memories.get(slots_name(self._site(model)))
        return {} if book is None else {subject: slot.requests for subject, slot in book.slots.items()}

    def _patch(self, model: EditableModel, groups: Mapping[str, tuple[EditRequest, ...]], prepared: Prepared) -> SlotPatch:
        space = SubjectSpace(prepared.tensors["mean"], prepared.tensors["precision"], prepared.tensors["bank"])
        wanted = sorted((subject, requests) for subject, requests in groups.items() if requests)
        new = [group for group in wanted if self._key(model, group[1], prepared) not in self._solved]
        # By relation: the prompts of one begin alike.
        new.sort(key=lambda group: [r.relation for r in group[1]])
        begun: defaultdict[int, Beginnings] = defaultdict(Beginnings)
        with self._bare(model):
            made = side_by_side(model, new, lambda on, group: self._slot(on, *group, space, prepared, begun[id(on)]))
        self._solved |= {self._key(model, slot.requests, prepared): slot for slot in made}
        # The same facts may come again under other names.
        changes: dict[str, Slot | None] = dict.fromkeys(groups)
        changes |= {s: replace(self._solved[self._key(model, r, prepared)], requests=r) for s, r in wanted}
        return SlotPatch(self._site(model), space.mean, self.config.gap_share, self.config.ramp_share, changes)

    @contextmanager
    def _bare(self, model: EditableModel) -> Iterator[None]:
        """The base model: the slots keep silent; patches of other editors come off and go on again."""
        book: SlotBook | None = model.memories.get(slots_name(self._site(model)))
        if book is None or not all(isinstance(p, SlotPatch) for p in model.patches):
            with at_base(model):
                yield
            return
        with book.silenced():
            yield

    # ------------------------------------------------------------ one subject

    def _slot(
        self,
        model: EditableModel,
        subject: str,
        requests: tuple[EditRequest, ...],
        space: SubjectSpace,
        prepared: Prepared,
        begun: Beginnings,
    ) -> Slot:
        templates = prepared.meta["templates"]
        every = sorted({t for known in templates.values() for t in known})
        barred = [p for r in requests for p in r.measured]
        prompts = [p for r in requests for p in (r.prompt, *r.also)]
        prompts = list(dict.fromkeys([subject, *prompts, *wordings_for(subject, every, self.config.key_wordings, barred)]))
        states = subject_states(model, prompts, [subject] * len(prompts), self._site(model), every)
        # On the grid before anything is measured with it: what it is measured with is what is served.
        vector = on_grid(space.filter(states, self.config.filter_slack)).float()
        own = float(torch.quantile(space.scores(vector, states), self.config.own_quantile))
        foreign = float(space.scores(vector, space.bank).max())
        layer, stated = self.config.layer, prepared.meta.get("stated")
        give_back(model)
        value, _ = solve_subject(model, requests, templates, layer, model.anatomy.mlp_out, self.config, stated, begun)
        return Slot(subject, requests, states, vector, own, foreign, value, space.mean)
