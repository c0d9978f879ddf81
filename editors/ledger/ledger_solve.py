"""The ledger's second writer: one closed-form solve over the set of active edits, from the base weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, final

import torch
from pydantic import PositiveFloat
from torch import Tensor

from editors.base import NO_BENCH, Corpus, EditorCard, Patch, Prepared, RetractingEditor, Workbench
from editors.ledger.growing_solve import GrowingSolve
from editors.ledger.subject_values import SubjectValueConfig, facts_of, group_by_subject, solve_subject, without
from editors.mechanics.answers import check_request
from editors.mechanics.behind import site_path, spread_site
from editors.mechanics.contexts import BARE
from editors.mechanics.paraphrases import relation_templates, stated_templates
from editors.mechanics.second_moment import LocatePreparation, PreparationReader, prepare_locate
from editors.mechanics.settings import AscendingLayers
from editors.model import EditableModel
from editors.patches.total import TotalPatch, active_total
from editors.patches.weight import LowRank, Update
from editors.solvers.solve import ridge_update
from editors.solvers.spread import spread_over_layers
from editors.targets.keys_values import lookup_states
from editors.views import at_base
from warehouse.digests import digest_of
from warehouse.records import EditBatch, EditRequest


class LedgerSolveConfig(SubjectValueConfig):
    """Attributes:
    layers: edited layers, ascending; values are solved at the last one's output.
    second_moment_weight: lambda, a constant: one that followed the batch would make batching show.
    resolve: `full` solves every layer anew. `incremental` keeps the first layer's system, whose keys no edit moves, and
        borders it with the new keys; the layers above it read what the lower ones now write, so they are solved anew.
        Equal to rounding, not bit for bit: order and batching then show in the last digits.
    """

    layers: AscendingLayers
    second_moment_weight: PositiveFloat = 15_000.0
    resolve: Literal["full", "incremental"] = "full"


@final
class LedgerSolve(RetractingEditor[LedgerSolveConfig]):
    """MEMIT's spread over the whole active set at once: sequential equals batch, retracting and superseding are exact.

    For each layer upwards, the weights below already replaced: Delta = R K^T (lambda C + K K^T)^-1, W = W_base + Delta,
    K and R over all active edits, sorted by subject and relation. Wang et al. 2026 (arXiv 2605.26670) show the sum of
    sequential updates with an accumulated Gram matrix to be this one solve.
    """

    card = EditorCard(
        name="ledger_solve",
        title="Ledger (solve)",
        family="direct",
        patch_kind="weight",
        paper="Wang et al. 2026, arXiv:2605.26670; Meng et al. 2023, arXiv:2210.07229; see docs/LEDGER.md",
        needs_preparation=True,
        retracts=True,
        only_xy=False,
        differs="Values come from the base model, one subject at a time; every patch holds the total of the active set and "
        "takes the place of the one below it.",
    )

    def __init__(self, config: LedgerSolveConfig) -> None:
        super().__init__(config)
        self._read = PreparationReader()
        # A value costs seconds and depends on nothing but the base, the settings and the subject's edits.
        self._solved: dict[str, Tensor] = {}
        #: By base and preparation; only where `resolve` is incremental.
        self._growing: dict[str, GrowingSolve] = {}

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """Second moments and contexts, as for MEMIT, and the wordings of relations."""
        located = prepare_locate(model, corpus, self.config.layers, self.config)
        return Prepared(
            located.tensors,
            {**located.meta, "wordings": relation_templates(corpus.edits), "stated": stated_templates(corpus.edits)},
        )

    def preparation_key(self) -> str:
        return digest_of("ledger-solve", self.config.preparation_digest(self.config.layers))

    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> TotalPatch:
        """See `Editor.edit`. An edit of a subject's relation that has one takes its place."""
        for request in batch.requests:
            check_request(request)
        active = self._active(model)
        return self._patch(model, {**active, **group_by_subject(active, batch.requests)}, prepared)

    def retract(self, model: EditableModel, request_ids: Sequence[str], prepared: Prepared) -> TotalPatch:
        """See `RetractingEditor.retract`."""
        active = self._active(model)
        return self._patch(model, {**active, **without(active, request_ids)}, prepared)

    def remember(self, model: EditableModel, patch: Patch, prepared: Prepared) -> None:
        """See `RetractingEditor.remember`: the values of the total's subjects count as solved."""
        if isinstance(patch, TotalPatch):
            self._solved |= {self._key(model, patch.active[s], prepared): delta for s, delta in patch.deltas.items()}

    def _key(self, model: EditableModel, requests: tuple[EditRequest, ...], prepared: Prepared) -> str:
        return digest_of(model.base_digest, self.config.digest, prepared.digest, facts_of(requests))

    def _active(self, model: EditableModel) -> dict[str, tuple[EditRequest, ...]]:
        total = active_total(model)
        return {} if total is None else total.active

    @torch.no_grad()
    def _patch(self, model: EditableModel, groups: Mapping[str, tuple[EditRequest, ...]], prepared: Prepared) -> TotalPatch:
        active = {subject: groups[subject] for subject in sorted(groups) if groups[subject]}
        known = self._read(prepared, self.config.layers, model.device)
        names = [model.anatomy.mlp_out.format(layer=layer) + ".weight" for layer in self.config.layers]
        with self._bare(model, names):
            deltas = {subject: self._delta(model, group, prepared) for subject, group in active.items()}
            updates = self._write(model, active, deltas, known, prepared) if active else {}
        return TotalPatch(names, updates, active, deltas)

    @contextmanager
    def _bare(self, model: EditableModel, names: Sequence[str]) -> Iterator[None]:
        """The base model. Totals need not come off the stack for it: their weights are put back after a look."""
        if all(isinstance(p, TotalPatch) for p in model.patches):
            with model.scratch():
                for name in names:
                    model.overwrite(name, model.base_parameter(name))
                yield
        else:
            with at_base(model):
                yield

    def _delta(self, model: EditableModel, requests: tuple[EditRequest, ...], prepared: Prepared) -> Tensor:
        key = self._key(model, requests, prepared)
        if key not in self._solved:
            last, wordings, stated = self.config.layers[-1], prepared.meta["wordings"], prepared.meta.get("stated")
            self._solved[key], _ = solve_subject(model, requests, wordings, last, self._target(model), self.config, stated)
        return self._solved[key]

    def _write(
        self,
        model: EditableModel,
        active: Mapping[str, tuple[EditRequest, ...]],
        deltas: Mapping[str, Tensor],
        known: LocatePreparation,
        prepared: Prepared,
    ) -> dict[str, Update]:
        config, last = self.config, self.config.layers[-1]
        requests = [r for group in active.values() for r in group]
        now = lookup_states(model, requests, BARE, self._target(model), last).outputs[:, 0]
        targets = now + torch.stack([deltas[r.subject] for r in requests]).to(now)
        if config.anchor_norm:
            targets = targets * (known.site_norms(spread_site(model))[last] / targets.norm(dim=1, keepdim=True))

        def solve(layer: int, residuals: Tensor, keys: Tensor, owner: Tensor) -> LowRank:
            if config.resolve == "incremental" and layer == config.layers[0]:
                owners = owner.tolist()
                # Which of its edit's keys each one is: an edit has one, or one for each form.
                forms = [at - owners.index(edit) for at, edit in enumerate(owners)]
                places = [
                    digest_of(requests[edit].subject, requests[edit].prompt, form)
                    for edit, form in zip(owners, forms, strict=True)
                ]
                if len(set(places)) == len(places):
                    return self._system(model, prepared, known).update(residuals, keys, places)
            return ridge_update(residuals, keys, known.factors[layer], config.second_moment_weight)

        return spread_over_layers(model, requests, known.contexts, config, targets, config.layers, solve)

    def _target(self, model: EditableModel) -> str:
        return site_path(model, spread_site(model))

    def _system(self, model: EditableModel, prepared: Prepared, known: LocatePreparation) -> GrowingSolve:
        key = digest_of(model.base_digest, prepared.digest)
        if key not in self._growing:
            self._growing[key] = GrowingSolve(known.factors[self.config.layers[0]], self.config.second_moment_weight)
        return self._growing[key]
