"""Minimal patch: the smallest update of the last feed-forward that gives every answer its margin, with a certificate."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from editors.base import NO_BENCH, NOTHING, Corpus, Editor, EditorCard, EditorConfig, Prepared, Workbench
from editors.errors import EditRefused
from editors.mechanics.answers import TOKENS_PER_PASS, Labels, answer_labels, answer_rows, at_positions
from editors.mechanics.behind import refuse_norm_behind
from editors.mechanics.last_layer import Positions, label_leads, last_block
from editors.mechanics.paraphrases import in_every_form
from editors.mechanics.second_moment import measure_moments, ridged_factor
from editors.mechanics.trace import trace
from editors.model import EditableModel
from editors.patches.weight import LowRank, WeightPatch
from editors.precision import wide, wide_device
from editors.solvers.quadratic import DualSolution, least_norm, solve_dual
from editors.solvers.solve import check_norm
from editors.views import at_base
from warehouse.digests import digest_of
from warehouse.records import EditBatch, EditRequest

log = logging.getLogger(__name__)

#: A verified lead may stay below the margin by this share of it: the norm curves between two linearisations.
SLACK = 0.02
#: Shortest step towards a program's solution, in halvings.
HALVINGS = 6
#: Constraints are generated until none is missed by more than this share of the margin.
MISSED = 1e-3
#: A refusal names the requests that hold at least this share of the largest multiplier.
NAMED = 0.01


class MinimalPatchConfig(EditorConfig):
    """Attributes:
    margin: every token of an answer, and the stop behind it, must lead all rivals by so many logits.
    metric: what `smallest` means: `frobenius`, as published, or `text`: the mean square of what the update adds to the
        layer's output on generic text, which spends the update where ordinary keys do not look.
    rounds: linearisations of the final norm, each with its own program.
    rivals: tokens that join an answer token's constraints at once.
    second_moment_tokens, second_moment_ridge: of `text`'s metric; the ridge is a share of the mean diagonal entry.
    max_relative_norm: margins that need an update above this share of the weight's Frobenius norm are infeasible.
    """

    margin: PositiveFloat = 1.0
    metric: Literal["frobenius", "text"] = "frobenius"
    rounds: PositiveInt = 10
    rivals: PositiveInt = 4
    second_moment_tokens: PositiveInt = 20_000
    second_moment_ridge: PositiveFloat = 1e-2
    max_relative_norm: PositiveFloat = 1.0


@final
class MinimalPatch(Editor[MinimalPatchConfig]):
    """min ||Delta|| subject to logit(y) - logit(y') >= margin for every answer token, its stop, and every rival y'.

    Point repair of one layer (Goldberger et al. 2020; Sotoudeh and Thakur 2021) for a language model's vocabulary. The
    last feed-forward's output projection reaches the logits through the final norm alone, so that with the norm
    linearised the constraints are a_i^T Delta k_i >= b_i: a quadratic program whose dual has one variable for each
    binding constraint. Rivals join by constraint generation over the whole vocabulary; margins are verified on the
    true norm, and the norm is linearised again where the patch arrived, until they hold.
    """

    card: ClassVar[EditorCard] = EditorCard(
        name="minimal_patch",
        title="Minimal patch",
        family="direct",
        patch_kind="weight",
        paper="Goldberger et al. 2020, Minimal Modifications of Deep Neural Networks using Verification (LPAR-23)",
        code="95616ARG/PRDNN",
        needs_preparation=True,
        differs="Least squares in place of the largest entry, solved by the dual; the final norm is linearised in turns and "
        "margins are verified on the true one; the vocabulary's constraints are generated; the norm may be measured on "
        "generic text. The stop behind an answer is part of it. Nothing asks the patch to reach other wordings.",
        behind_norm=False,
    )

    def __init__(self, config: MinimalPatchConfig) -> None:
        super().__init__(config)
        self._last: tuple[Prepared, Tensor] | None = None

    def preparation_key(self) -> str:
        config = self.config
        if config.metric == "frobenius":
            return digest_of("minimal_patch")
        return digest_of("minimal_patch", config.seed, config.second_moment_tokens, config.second_moment_ridge)

    def prepare(self, model: EditableModel, corpus: Corpus, bench: Workbench = NO_BENCH) -> Prepared:
        """The second moment of the last layer's keys, where the metric asks for it.

        Raises:
            ValueError: the corpus holds no token.
        """
        config, layer = self.config, _last_layer(model)
        if config.metric == "frobenius":
            return NOTHING
        with at_base(model):
            moments = measure_moments(model, corpus.texts, [layer], config.second_moment_tokens, config.seed)
        factor = ridged_factor(moments.second[layer], config.second_moment_ridge)
        return Prepared({"factor": factor.float().cpu()}, {"tokens": moments.tokens})

    @torch.no_grad()
    def edit(self, model: EditableModel, batch: EditBatch, prepared: Prepared) -> WeightPatch:
        config, requests = self.config, in_every_form(batch.requests)
        site = read_site(model, requests)
        program = Program(model, site, self._directions(site.keys, prepared), config)
        path, layer = model.anatomy.mlp_out, _last_layer(model)
        weight, names = model.weight(path, layer), [r.request_id for r in requests]
        program.solve(names, config.max_relative_norm * float(wide(weight).norm()))
        update = program.update()
        check_norm(update, weight, config.max_relative_norm, names)
        note = {"editor": "minimal_patch", "requests": names, "certificate": program.certificate(names)}
        return WeightPatch({path.format(layer=layer) + ".weight": update}, note)

    def _directions(self, keys: Tensor, prepared: Prepared) -> Tensor:
        """M^-1 k for every key, fp64: where an update is spent to move the output at k most for its size."""
        if self.config.metric == "frobenius":
            return wide(keys)
        if self._last is None or self._last[0] is not prepared:
            self._last = (prepared, prepared.tensors["factor"].to(wide_device(keys.device), torch.float64))
        return torch.cholesky_solve(wide(keys).t(), self._last[1]).t()


def _last_layer(model: EditableModel) -> int:
    return model.anatomy.num_layers(model.hf) - 1


@dataclass(frozen=True)
class Site:
    """Label positions at the last layer.

    Attributes:
        keys: (labels, d_mlp) input of the output projection.
        places: states behind the last block.
    """

    keys: Tensor
    places: Positions
    labels: Labels


def read_site(model: EditableModel, requests: Sequence[EditRequest]) -> Site:
    """One pass over requests as answer rows.

    Raises:
        InvalidRequest: a request that cannot be applied.
        UnsupportedModel: a norm stands behind the feed-forward.
    """
    refuse_norm_behind(model, "minimal_patch")
    block, path = last_block(model), model.anatomy.mlp_out.format(layer=_last_layer(model))
    longest = answer_rows(model, requests).ids.shape[1]
    size = max(1, TOKENS_PER_PASS // longest)
    keys, hidden, parts = [], [], []
    for at in range(0, len(requests), size):
        rows = answer_rows(model, requests[at : at + size])
        with at_positions(model, rows.positions()):
            seen = trace(model, rows.ids, rows.mask, inputs=(path,), outputs=(block,))
        assert seen.final is not None
        labels = answer_labels(model, rows, seen.final)
        keys.append(seen.inputs[path][labels.row, labels.at].float())
        hidden.append(seen.outputs[block][labels.row, labels.at].float())
        parts.append((labels.row + at, labels.at, labels.token, labels.is_stop))
    merged = [torch.cat(column) for column in zip(*parts, strict=True)]
    labels = Labels(merged[0], merged[1], merged[2], merged[3], len(requests))
    states = torch.cat(hidden)
    return Site(torch.cat(keys), Positions(states, states), labels)


class Program:
    """The quadratic program of one batch: constraints (label, rival), their multipliers, and the update they make.

    Delta = sum_i x_i a_i m_i^T with m = M^-1 k; as constraints of one label share its key, Delta = A m^T with one row of
    A for each label, and what it adds at label s is sum_t A_t (m_t . k_s).
    """

    def __init__(self, model: EditableModel, site: Site, directions: Tensor, config: MinimalPatchConfig) -> None:
        self._model, self._site, self._directions, self._config = model, site, directions, config
        self._norm = model.hf.get_submodule(model.anatomy.final_norm)
        self._head = model.head
        keys = wide(site.keys)
        self._cross = directions @ keys.t()
        self._plain = keys @ keys.t()
        labels = len(site.labels.row)
        self._forbidden = self._not_rivals()
        self._pairs: list[tuple[int, int]] = []
        self._multipliers = torch.zeros(0, dtype=torch.float64)
        self._rows = keys.new_zeros(labels, site.places.hidden.shape[1])
        self._rounds = 0
        self._leads = self._verify()

    def solve(self, names: Sequence[str], largest: float) -> None:
        """Linearise, solve, verify, until every true lead holds.

        Args:
            largest: Frobenius norm above which the margins count as infeasible.

        Raises:
            EditRefused: infeasible within that norm, or not verified after all rounds; names the requests.
        """
        margin = self._config.margin
        for done in range(self._config.rounds + 1):
            self._rounds = done
            if float(self._leads.min()) >= (1 - SLACK) * margin:
                return
            if done < self._config.rounds:
                before = self._rows
                self._linear_program(names, largest)
                self._step(before)
        late = sorted({names[int(r)] for r in self._site.labels.row[self._leads < (1 - SLACK) * margin]})
        raise EditRefused(
            f"{', '.join(late)}: after {self._rounds} linearisations the smallest lead is {float(self._leads.min()):.3f}, not "
            f"{margin}; raise rounds or lower margin"
        )

    def _step(self, before: Tensor) -> None:
        """Go from the rows before to the program's, or so far on the way that the true leads get better.

        Where the update is large against the state, the norm bends before it arrives and full steps go round in circles.
        """
        whole, missed = self._rows, self._missed()
        for halving in range(HALVINGS):
            self._rows = before + 0.5**halving * (whole - before)
            self._leads = self._verify()
            if self._missed() < missed:
                return

    def _missed(self) -> float:
        return float((self._config.margin - self._leads).clamp_min(0).square().sum())

    def update(self) -> LowRank:
        used = (self._rows != 0).any(1)
        used[0] |= ~used.any()  # nothing to repair is an update of zeros
        return LowRank(self._rows[used].t().float().contiguous(), self._directions[used].t().float().contiguous())

    def certificate(self, names: Sequence[str]) -> dict[str, Any]:
        """What anybody can check again: verified leads, and the binding constraints with their dual variables."""
        labels, tokens = self._site.labels, self._model.tokenizer
        leads: dict[str, float] = {}
        for row, lead in zip(labels.row.tolist(), self._leads.tolist(), strict=True):
            name = names[int(row)]
            if name not in leads or lead < leads[name]:
                leads[name] = float(lead)
        binding = [
            {
                "request": names[int(labels.row[at])],
                "position": int(labels.at[at]),
                "multiplier": value,
                "token": tokens.convert_ids_to_tokens(int(labels.token[at])),
                "rival": tokens.convert_ids_to_tokens(rival),
            }
            for (at, rival), value in zip(self._pairs, self._multipliers.tolist(), strict=True)
            if value > 0
        ]
        return {
            "margin": self._config.margin,
            "metric": self._config.metric,
            "linearisations": self._rounds,
            "constraints": len(self._pairs),
            "binding": binding,
            "verified_leads": leads,
        }

    # ------------------------------------------------------------ one linearisation

    def _linear_program(self, names: Sequence[str], largest: float) -> None:
        """Solve with the norm linearised at the update as it is; rivals join until none in the vocabulary is missed."""
        here = wide(self._site.places.hidden) + self._added()
        at_rows, margin = self._rows.clone(), self._config.margin
        state = self._normed(self._near(here))
        solved = False
        while True:
            moved = self._cross.t() @ (self._rows - at_rows)
            logits = self._head((state + self._push(here, moved)).to(self._head.weight.dtype)).float()
            # Known rivals are missed as well, by the curve of the norm since the last round: solve at least once.
            if not self._join_rivals(logits, (1 - MISSED) * margin) and solved:
                return
            normals = self._pull(here)
            label = torch.tensor([at for at, _ in self._pairs], device=here.device)
            flat = normals @ normals.t()
            gram = (flat * self._cross[label][:, label]).cpu()
            plain = (flat * self._plain[label][:, label]).cpu()
            # The lead where the norm is linearised, less what the update already does there by the linear form.
            stood = wide(self._pair_leads(self._head(state.to(self._head.weight.dtype)).float(), label))
            already = (normals * (self._cross.t() @ at_rows)[label]).sum(1)
            bounds = (margin - stood + already).cpu()
            found = solve_dual(
                gram,
                bounds,
                tolerance=0.1 * MISSED * margin,
                start=self._multipliers,
                hopeless=lambda x, plain=plain, bounds=bounds: least_norm(plain, bounds, x) > largest,
            )
            if not found.finished:
                raise EditRefused(self._infeasible(found, plain, bounds, names, largest))
            self._multipliers, solved = found.multipliers, True
            weighted = found.multipliers.to(normals)[:, None] * normals
            self._rows = torch.zeros_like(self._rows).index_add(0, label, weighted)

    def _infeasible(self, found: DualSolution, plain: Tensor, bounds: Tensor, names: Sequence[str], largest: float) -> str:
        proof = max((found.ray, found.multipliers), key=lambda x: least_norm(plain, bounds, x))
        needed = least_norm(plain, bounds, proof)
        row = self._site.labels.row.cpu()
        who = sorted({names[int(row[self._pairs[i][0]])] for i in (proof > NAMED * proof.max()).nonzero()[:, 0].tolist()})
        if needed > largest:
            size = "no update at all" if needed == float("inf") else f"only an update of norm {needed:.3g} or more"
            return (
                f"{', '.join(who)}: {size} gives these answers their margins together (allowed: {largest:.3g}); two of them "
                "may ask the same words for different answers: send them apart, or raise max_relative_norm"
            )
        return f"{', '.join(who)}: the program stopped {found.shortfall:.3g} logits short; lower margin or split the batch"

    def _join_rivals(self, logits: Tensor, least: float) -> bool:
        """Add the worst rivals that come nearer than `least`; True if there was one."""
        token = self._site.labels.token
        own = logits.gather(1, token[:, None])
        leads = own - logits.masked_fill(self._forbidden, float("-inf"))
        worst, rivals = leads.topk(min(self._config.rivals, leads.shape[1]), dim=1, largest=False)
        known = set(self._pairs)
        fresh = [(at, int(rivals[at, n])) for at, n in (worst < least).nonzero().tolist()]
        fresh = [pair for pair in fresh if pair not in known]
        self._pairs += fresh
        self._multipliers = torch.cat([self._multipliers, torch.zeros(len(fresh), dtype=torch.float64)])
        return bool(fresh)

    def _not_rivals(self) -> Tensor:
        """(labels, vocab) True for the label itself, and for every stop where any stop will do."""
        labels = self._site.labels
        out = torch.zeros(len(labels.row), self._model.vocab_size, dtype=torch.bool, device=labels.row.device)
        out.scatter_(1, labels.token[:, None], True)
        out[labels.is_stop] |= self._model.stops.to(out.device)
        return out

    # ------------------------------------------------------------ the final norm and the head

    def _added(self) -> Tensor:
        """(labels, d_model) what the update adds to the layer's output."""
        return self._cross.t() @ self._rows

    def _near(self, wide_states: Tensor) -> Tensor:
        """In fp32, where the model is."""
        return wide_states.to(self._site.keys)

    def _verify(self) -> Tensor:
        """True leads, through the norm and the head as they are."""
        logits = self._site.places.logits(self._model, self._near(self._added()))
        return label_leads(logits, self._site.labels, self._model.stops.to(logits.device))

    def _normed(self, states: Tensor) -> Tensor:
        """The final norm in fp32, whatever the model's dtype: a program over rounded numbers would not close."""
        path, model = self._model.anatomy.final_norm, self._model
        full = {name: model.parameter(f"{path}.{name}").float() for name, _ in self._norm.named_parameters()}
        return torch.func.functional_call(self._norm, full, (states,))

    def _push(self, here: Tensor, moved: Tensor) -> Tensor:
        """J moved: the norm's change to first order."""
        return torch.func.jvp(self._normed, (self._near(here),), (self._near(moved),))[1]

    def _pull(self, here: Tensor) -> Tensor:
        """a_i = J^T (e_y - e_rival) for every constraint, fp64."""
        label = torch.tensor([at for at, _ in self._pairs], device=here.device)
        rival = torch.tensor([r for _, r in self._pairs], device=here.device)
        table = self._model.head_weight
        apart = (table[self._site.labels.token[label]] - table[rival]).float()
        with torch.enable_grad():
            state = self._near(here[label]).requires_grad_(True)
            (pulled,) = torch.autograd.grad(self._normed(state), state, apart)
        return wide(pulled)

    def _pair_leads(self, logits: Tensor, label: Tensor) -> Tensor:
        rival = torch.tensor([r for _, r in self._pairs], device=logits.device)
        return logits[label, self._site.labels.token[label]] - logits[label, rival]
