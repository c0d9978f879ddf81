"""MALMEN: the update against a direct solve, decoupled training against one graph, sequences and a resumed preparation."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from editors.base import Prepared
from editors.errors import EditRefused
from editors.mechanics.answers import row_losses
from editors.mechanics.gradients import weight_shape
from editors.meta_learning.malmen import Malmen, MalmenConfig, ridge_of
from editors.model import EditableModel
from editors.nets.earlier_edits import EarlierEdits, keys_of, malmen_patches, released_keys
from editors.nets.episodes import hold_out, row_divergences
from editors.nets.hypernetwork import EditorNets, fresh_nets
from editors.nets.lessons import ask, batch_factors, compatible, request_factors, take_moments, whole_episode
from editors.patches.files import load_patch, save_patch
from editors.patches.weight import LowRank
from editors.session import batch_of, run_edits
from editors.solvers.held_keys import HeldKeys
from tests.support import CORPUS, SIX_REQUESTS, TRAINING_EDITS, tiny_model

TINY = MalmenConfig(
    layers=(1, 2), tokens="all", rank=4, edit_rate=0.5, updates=6, edits_each=3, batch_sizes=(1, 2), episodes_per_pass=2,
    tokens_per_pass=4, max_relative_norm=100.0,
)  # fmt: skip


@cache
def prepared(kind: str = "gpt2") -> Prepared:
    return Malmen(TINY).prepare(tiny_model(kind), CORPUS)


def ready(model: EditableModel) -> Prepared:
    return prepared(model.name.removeprefix("tiny-"))


def in_training(model: EditableModel) -> EditorNets:
    """Nets on their way, no longer fresh, whose tensors ask for gradients."""
    places = Malmen(TINY)._places(model)
    moments = take_moments(model, TRAINING_EDITS, places)
    learnt = fresh_nets(places.shapes, 4, seed=1)
    fixed = moments.fixed()
    generator = torch.Generator().manual_seed(2)
    for path in places.shapes:
        fixed |= {f"{path}|unit": torch.tensor(0.1), f"{path}|energy": moments.energy(path)}
        learnt |= {f"{path}|step": torch.tensor(-0.7), f"{path}|ridge": torch.tensor(-1.5)}
    for name, tensor in learnt.items():
        if name.endswith("up"):
            tensor.normal_(0, 0.1, generator=generator)
        tensor.requires_grad_(True)
    return EditorNets(learnt, fixed, places.shapes)


def direct_update(nets: EditorNets, path: str, inputs: Tensor, pseudo: tuple[Tensor, Tensor]) -> Tensor:
    """S of one projection in one expression, by a solve in the width of the keys; gradients flow through all of it."""
    pseudo_inputs, pseudo_gradients = pseudo
    eta = nets.learnt[f"{path}|step"].exp() * nets.fixed[f"{path}|unit"]
    ridge = nets.learnt[f"{path}|ridge"].exp() * nets.fixed[f"{path}|energy"]
    changes = torch.stack([-eta * (u @ v) * g for u, v, g in zip(inputs, pseudo_inputs, pseudo_gradients, strict=True)])
    gram = inputs.t() @ inputs + ridge * torch.eye(inputs.shape[1])
    return torch.linalg.solve(gram.double(), (inputs.t() @ changes).double()).t().float()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_update_is_the_ridge_solution_for_all_tokens_of_the_batch(kind: str) -> None:
    model, known = tiny_model(kind), prepared(kind)
    patch = Malmen(TINY).edit(model, batch_of(SIX_REQUESTS[:3]), known)
    places = Malmen(TINY)._places(model)
    nets = EditorNets(known.tensors, known.tensors, places.shapes)
    every = request_factors(model, SIX_REQUESTS[:3], places)
    for path in places.shapes:
        parts = [nets(path, factors[path]) for factors in every]
        pseudo = (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))
        wanted = direct_update(nets, path, torch.cat([f[path].inputs for f in every]), pseudo)
        torch.testing.assert_close(patch.dense(f"{path}.weight"), wanted, rtol=1e-3, atol=1e-5)


def test_decoupled_training_gives_the_gradients_of_one_graph() -> None:
    model = tiny_model()
    editor, nets = Malmen(TINY), in_training(model)
    places = editor._places(model)
    # Batches of two and of one, in passes of two episodes and nets' batches of four tokens: nothing divides.
    episodes = [whole_episode(edit) for edit in TRAINING_EDITS[:3]]
    batches = [compatible(episodes[:2]), compatible(episodes[2:])]
    measured = editor._gather(model, nets, places, batches)
    found = {name: t.grad.clone() for name, t in nets.learnt.items() if t.grad is not None}
    for tensor in nets.learnt.values():
        tensor.grad = None

    edited, kept = [], []
    for batch, factors in zip(batches, batch_factors(model, batches, places), strict=True):
        updates = {p: direct_update(nets, p, f.inputs, nets(p, f)) for p, f in factors.items()}
        reading = (asked := ask(model, [batch], places)).reading
        weights = {f"{p}.weight": model.parameter(f"{p}.weight") + s.t() for p, s in updates.items()}
        logits = reading.logits(weights)
        edited.append(row_losses(logits, reading.labels)[asked.is_new])
        kept.append(row_divergences(reading.base, logits, reading.labels)[~asked.is_new])
    loss = torch.cat(edited).mean() + TINY.locality_weight * torch.cat(kept).mean()
    loss.backward()
    assert measured["edited"] == pytest.approx(float(torch.cat(edited).detach().mean()), rel=1e-4)
    assert measured["kept"] == pytest.approx(float(torch.cat(kept).detach().mean()), rel=1e-3)
    for name, tensor in nets.learnt.items():
        assert tensor.grad is not None
        torch.testing.assert_close(found[name], tensor.grad, rtol=5e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_patches_are_low_rank_whatever_the_batch(tiny: EditableModel) -> None:
    for count in (1, 6):
        patch = Malmen(TINY).edit(tiny, batch_of(SIX_REQUESTS[:count]), ready(tiny))
        assert {type(update) for update in patch.updates.values()} == {LowRank}


def test_a_change_is_asked_for_at_answer_tokens_alone_as_published(tiny: EditableModel) -> None:
    published = Malmen(TINY.model_copy(update={"tokens": "answers"}))
    patch = published.edit(tiny, batch_of(SIX_REQUESTS[:1]), published.prepare(tiny, CORPUS))
    # One target of a few tokens and its stop.
    owners = patch.meta["note"]["owners"]
    wanted = len(tiny.tokenizer(" Paris")["input_ids"]) + 1
    assert {len(tokens) for tokens in owners.values()} == {wanted}


def test_later_edits_hold_the_values_of_earlier_ones_where_the_gram_is_kept() -> None:
    moved = {}
    for keep in (True, False):
        model, known = tiny_model(), prepared()
        editor = Malmen(TINY.model_copy(update={"keep_gram": keep}))
        model.push(editor.edit(model, batch_of(SIX_REQUESTS[:1]), known))
        path = "transformer.h.1.mlp.c_proj"
        keys = keys_of(malmen_patches(model)[0], [path])[path]
        later = editor.edit(model, batch_of(SIX_REQUESTS[1:2]), known)
        moved[keep] = float((later.dense(f"{path}.weight") @ keys).norm())
    assert moved[True] < 0.7 * moved[False]


def test_earlier_keys_are_the_inputs_of_the_earlier_edits(tiny: EditableModel, tmp_path: Path) -> None:
    editor, known = Malmen(TINY), ready(tiny)
    places = editor._places(tiny)
    path = next(iter(places.shapes))
    wanted = request_factors(tiny, SIX_REQUESTS[:1], places)[0][path].inputs.t()
    save_patch(editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), known), tmp_path)
    tiny.push(load_patch(tmp_path))
    assert torch.equal(keys_of(malmen_patches(tiny)[0], [path])[path], wanted)


def test_keys_of_a_subject_that_is_edited_again_are_released(tiny: EditableModel) -> None:
    for _ in run_edits(Malmen(TINY), tiny, SIX_REQUESTS[:2], ready(tiny), mode="sequential"):
        pass
    path = next(iter(Malmen(TINY)._places(tiny).shapes))
    wanted = keys_of(malmen_patches(tiny)[0], [path])[path]
    assert torch.equal(released_keys(tiny, [path], {SIX_REQUESTS[0].subject})[path], wanted)
    assert not released_keys(tiny, [path], {"Atlantis"})


def test_an_edit_of_the_same_subject_is_not_held_back_by_its_first() -> None:
    """It asks for what it would ask with the other edits alone before it."""
    again = SIX_REQUESTS[0].model_copy(update={"request_id": "again", "target_new": "Lima"})
    found = {}
    for number, held in enumerate((SIX_REQUESTS[:2], SIX_REQUESTS[1:2])):
        model, editor, known = tiny_model(), Malmen(TINY), prepared()
        # The weights stay the base's, so that both ask at the same keys.
        for request in held:
            model.patches.append(editor.edit(model, batch_of([request]), known))
        found[number] = editor.edit(model, batch_of([again]), known)
        model.patches.clear()
    for name in found[0].updates:
        torch.testing.assert_close(found[0].dense(name), found[1].dense(name), rtol=1e-4, atol=1e-6)


def test_an_editor_that_went_along_writes_what_a_fresh_one_writes(tiny: EditableModel) -> None:
    """Memory of earlier edits is no state: a resumed process, and one that rolled back, write the same bits."""
    known, along, next_one = ready(tiny), Malmen(TINY), batch_of(SIX_REQUESTS[4:5])
    for request in SIX_REQUESTS[:4]:
        tiny.push(along.edit(tiny, batch_of([request]), known))
    for depth in (4, 2):
        tiny.rollback(depth)
        assert along.edit(tiny, next_one, known).digest == Malmen(TINY).edit(tiny, next_one, known).digest


def test_only_the_patches_that_are_new_are_taken_up(tiny: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    monkeypatch.setattr(HeldKeys, "hold", lambda self, keys: held.append(keys.shape[1]))
    editor, known, earlier = Malmen(TINY), ready(tiny), EarlierEdits()
    paths = dict.fromkeys(editor._places(tiny).shapes, 0.5)
    for count in (1, 2, 3):
        tiny.push(
            Malmen(TINY.model_copy(update={"keep_gram": False})).edit(tiny, batch_of(SIX_REQUESTS[count : count + 1]), known)
        )
        earlier.held(tiny, paths)
        assert len(held) == count * len(paths)


def test_the_first_ridge_is_a_share_of_the_energy_of_a_key(tiny: EditableModel) -> None:
    places = Malmen(TINY)._places(tiny)
    known = Malmen(TINY.model_copy(update={"updates": 1, "rate_learning_rate": 1e-9})).prepare(tiny, CORPUS)
    nets = EditorNets(known.tensors, known.tensors, places.shapes)
    shown = [e.request for e in hold_out(CORPUS.edits, TINY.held_out, TINY.seed)[0]]
    for path, (_, d_in) in places.shapes.items():
        keys = torch.cat([f[path].inputs for f in request_factors(tiny, shown, places)])
        assert weight_shape(tiny, path)[1] == d_in == keys.shape[1]
        assert ridge_of(nets, path) == pytest.approx(TINY.ridge * float(keys.square().sum(1).mean()), rel=1e-3)


def test_what_an_edit_alone_reads_asks_for_no_new_preparation() -> None:
    key = Malmen(TINY).preparation_key()
    same = Malmen(TINY.model_copy(update={"keep_gram": False, "max_relative_norm": 1.0})).preparation_key()
    assert key == same != Malmen(TINY.model_copy(update={"ridge": 0.2})).preparation_key()


def test_an_update_that_is_too_large_is_refused_by_name(tiny: EditableModel) -> None:
    with pytest.raises(EditRefused, match="r1"):
        Malmen(TINY.model_copy(update={"max_relative_norm": 1e-6})).edit(tiny, batch_of(SIX_REQUESTS[:1]), ready(tiny))
