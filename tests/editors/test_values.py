"""The optimisation of values: the cached suffix against full passes, stops, batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editors.asking.tokens import pad_right
from editors.errors import InvalidRequest
from editors.mechanics.contexts import BARE, encode_lookups
from editors.mechanics.settings import LocateEditConfig
from editors.mechanics.suffix import Suffix, SuffixParts
from editors.mechanics.trace import trace
from editors.model import EditableModel
from editors.targets.objective import build_objective, encode_edits
from editors.targets.values import optimise_values
from tests.editors.locating import CONTEXTS, config, randn
from tests.stand_ins import Ask
from tests.support import SIX_REQUESTS, request

KEPT = {"P19": "{} was born in", "P27": "The country of {} is", "P20": "{} died in"}


# ------------------------------------------------------------ value optimisation


def hooked_objective(
    model: EditableModel, r, layer: int, site: str, delta: Tensor, settings: LocateEditConfig, kept: list[str]
) -> Tensor:
    """J(delta) of one edit by the whole model, one row at a time, with a hook that adds delta at the lookup token."""

    def log_probs(prompt: str, continuation: str, change: Tensor | None) -> tuple[Tensor, int, list[int], int]:
        (row,) = encode_lookups(model, [prompt], [r.subject], [continuation])

        def add(_m, _i, output):
            first = output[0] if isinstance(output, tuple) else output
            moved = first.clone()
            moved[:, row.lookup] += change
            return moved

        path = (model.anatomy.mlp if site == "mlp" else model.anatomy.block).format(layer=layer)
        undo = model.hook(path, add) if change is not None else (lambda: None)
        try:
            logits = model.hf(input_ids=torch.tensor([row.ids])).logits[0]
        finally:
            undo()
        return logits.log_softmax(-1), row.lookup, row.ids, row.start

    total = torch.zeros(())
    for prompt in CONTEXTS.fill(r.prompt):
        logp, _, ids, start = log_probs(prompt, " " + r.target_new, delta)
        terms = [-logp[t - 1, ids[t]] for t in range(start, len(ids))]
        if settings.include_stop:
            terms.append(-logp[-1][model.stops].logsumexp(-1))
        total = total + torch.stack(terms).mean() / len(CONTEXTS.templates)
    now, at, _, _ = log_probs(f"{r.subject} is a", "", delta)
    was = log_probs(f"{r.subject} is a", "", None)[0]
    total = total + settings.kl_weight * (now[at].exp() * (now[at] - was[at])).sum()
    for prompt in kept:
        now, was = log_probs(prompt, "", delta)[0][-1], log_probs(prompt, "", None)[0][-1]
        total = total + settings.kept_weight / settings.kept_count * (was.exp() * (was - now)).sum()
    path = (model.anatomy.mlp_out if site == "mlp" else model.anatomy.block).format(layer=layer)
    (row,) = encode_lookups(model, [r.prompt], [r.subject], [""])
    base = trace(model, *pad_right([row.ids], model.pad_id), outputs=(path,)).outputs[path][0, row.lookup]
    return total + settings.value_decay * delta.norm() / base.norm() ** 2


@pytest.mark.parametrize(("site", "layer"), [("mlp", 1), ("block", 2), ("block", 3)])
def test_cached_suffix_gives_cost_and_gradient_of_the_full_forward(tiny: EditableModel, site: str, layer: int) -> None:
    settings = config(kept_prompts=KEPT, kept_weight=0.7, kept_count=3)
    path = tiny.anatomy.mlp_out if site == "mlp" else tiny.anatomy.block
    encoded = encode_edits(tiny, SIX_REQUESTS, CONTEXTS, settings)
    objective, _ = build_objective(tiny, encoded, layer, path, settings)
    deltas = 0.3 * randn(6, 32).float()
    deltas.requires_grad_(True)
    cost = objective(deltas).cost
    (gradient,) = torch.autograd.grad(cost.sum(), deltas)
    for i, r in enumerate(SIX_REQUESTS):
        delta = deltas[i].detach().clone().requires_grad_(True)
        kept = [p.replace("{}", r.subject) for relation, p in KEPT.items() if relation != r.relation]
        slow = hooked_objective(tiny, r, layer, site, delta, settings, kept)
        (slow_gradient,) = torch.autograd.grad(slow, delta)
        torch.testing.assert_close(cost[i].detach(), slow.detach(), rtol=2e-4, atol=2e-5)
        torch.testing.assert_close(gradient[i], slow_gradient, rtol=5e-3, atol=2e-5)


def test_rows_of_like_width_run_together_with_the_same_cost_and_gradient(tiny: EditableModel) -> None:
    long = "Ada Lovelace, who lived in London and wrote about engines that nobody had built, was born in"
    asked = [SIX_REQUESTS[0].model_copy(update={"also": (long, "Ada Lovelace? " + long)}), *SIX_REQUESTS[1:]]
    settings = config(kept_prompts=KEPT, kept_weight=0.7, kept_count=3)
    objective, _ = build_objective(tiny, encode_edits(tiny, asked, BARE, settings), 1, tiny.anatomy.mlp_out, settings)
    parted = objective.in_parts()
    assert isinstance(parted.suffix, SuffixParts) and len(parted.suffix.parts) > 1
    some = torch.tensor([True, False, True, False, False, True])
    for one, other, count in ((objective, parted, 6), (objective.select(some), parted.select(some), 3)):
        found = []
        for each in (one, other):
            deltas = (0.3 * randn(6, 32).float())[:count].requires_grad_(True)
            terms = each(deltas)
            found.append((terms.cost.detach(), terms.margin, torch.autograd.grad(terms.cost.sum(), deltas)[0]))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_rows_of_one_width_stay_together(tiny: EditableModel) -> None:
    settings = config(kl_weight=0.0)
    encoded = encode_edits(tiny, SIX_REQUESTS[:1], BARE, settings)
    objective, _ = build_objective(tiny, encoded, 1, tiny.anatomy.mlp_out, settings)
    assert isinstance(objective.in_parts().suffix, Suffix)


def test_without_any_kl_term_the_cost_is_likelihood_and_decay(tiny: EditableModel) -> None:
    settings = config(kl_weight=0.0)
    encoded = encode_edits(tiny, SIX_REQUESTS, CONTEXTS, settings)
    objective, _ = build_objective(tiny, encoded, 1, tiny.anatomy.mlp_out, settings)
    delta = randn(6, 32).float()
    for i, r in enumerate(SIX_REQUESTS):
        slow = hooked_objective(tiny, r, 1, "mlp", delta[i], settings, [])
        torch.testing.assert_close(objective(delta).cost[i], slow, rtol=2e-4, atol=2e-5)


def test_margin_is_positive_exactly_where_the_predictor_says_exact(tiny: EditableModel) -> None:
    answers = [tiny.generate([r.prompt], 3)[0].split() for r in SIX_REQUESTS]
    said = [
        request(i, r.subject, " ".join(a), prompt=r.prompt.replace(r.subject, "{}"))
        for i, (r, a) in enumerate(zip(SIX_REQUESTS, answers, strict=True))
        if a
    ]
    cases = [*said, *SIX_REQUESTS]
    settings = config()
    encoded = encode_edits(tiny, cases, BARE, settings)
    objective, _ = build_objective(tiny, encoded, 1, tiny.anatomy.mlp_out, settings)
    margins = objective(torch.zeros(len(cases), 32)).margin

    exact = [a.exact for a in tiny.score([Ask(r.prompt, r.target_new) for r in cases])]
    assert (margins > 0).tolist() == exact


@pytest.mark.parametrize("stops", [False, True])
def test_a_batch_of_values_equals_one_at_a_time(tiny: EditableModel, stops: bool) -> None:
    settings = config(kept_prompts=KEPT, kept_weight=0.5, kept_count=1, value_steps=12)
    if stops:
        # A loss that about half of the edits reach before the last step.
        losses = optimise_values(tiny, SIX_REQUESTS, CONTEXTS, 1, "mlp", settings).losses
        settings = settings.model_copy(update={"stop_loss": sorted(losses)[3] + 0.05})
    together = optimise_values(tiny, SIX_REQUESTS, CONTEXTS, 1, "mlp", settings)
    for i, r in enumerate(SIX_REQUESTS):
        alone = optimise_values(tiny, [r], CONTEXTS, 1, "mlp", settings)
        assert alone.steps[0] == together.steps[i]
        torch.testing.assert_close(alone.deltas[0], together.deltas[i], rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(alone.base_values[0], together.base_values[i], rtol=1e-4, atol=1e-5)
    if stops:
        assert len(set(together.steps)) > 1, "the case must let edits stop at different steps"


def test_the_optimisation_is_adam_with_a_projection_after_each_step(tiny: EditableModel) -> None:
    settings = config(value_steps=5, clamp_norm=1.5, include_stop=False)
    r = SIX_REQUESTS[0]
    solved = optimise_values(tiny, [r], CONTEXTS, 1, "mlp", settings)
    limit = 1.5 * solved.base_values[0].norm()
    delta = torch.zeros(32, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.value_lr)
    for _ in range(4):
        adam.zero_grad()
        hooked_objective(tiny, r, 1, "mlp", delta, settings, []).backward()
        adam.step()
        with torch.no_grad():
            delta.mul_(torch.clamp(limit / delta.norm(), max=1.0))
    torch.testing.assert_close(solved.deltas[0], delta.detach(), rtol=1e-2, atol=1e-2)
    assert solved.deltas[0].norm() <= limit * 1.0001


def test_optimisation_lowers_the_loss_and_leaves_the_model_alone(tiny: EditableModel) -> None:
    before = tiny.state_digest()
    short = optimise_values(tiny, SIX_REQUESTS, CONTEXTS, 1, "mlp", config(value_steps=1))
    long = optimise_values(tiny, SIX_REQUESTS, CONTEXTS, 1, "mlp", config(value_steps=15))
    assert all(b < a for a, b in zip(short.losses, long.losses, strict=True))
    assert not short.deltas.any()
    assert tiny.state_digest() == before
    assert not any(p.requires_grad or p.grad is not None for p in tiny.hf.parameters())


def test_kept_prompts_of_the_edited_relation_are_left_out(tiny: EditableModel) -> None:
    settings = config(kept_prompts=KEPT, kept_weight=1.0)
    (edit,) = encode_edits(tiny, SIX_REQUESTS[:1], BARE, settings)
    texts = [tiny.tokenizer.decode(r.ids) for r, k in zip(edit.rows, edit.kinds, strict=True) if k.name == "KEPT"]
    assert texts == ["The country of Ada Lovelace is", "Ada Lovelace died in"]


def test_an_empty_target_is_refused_by_name(tiny: EditableModel) -> None:
    with pytest.raises(InvalidRequest, match="r9"):
        optimise_values(tiny, [request(9, "France", " ")], BARE, 1, "mlp", config())
