"""RECT, PRUNE and NAS around their hosts, on tiny models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from editors.base import Editor, Prepared
from editors.direct.nas import subject_norm
from editors.direct.prune import restraint
from editors.direct.rect import rectified
from editors.errors import UnsupportedModel
from editors.mechanics.contexts import BARE
from editors.model import EditableModel
from editors.patches.weight import Dense, Sparse, WeightPatch
from editors.presets import load_editor
from editors.session import batch_of, run_edits
from editors.targets.keys_values import lookup_states
from tests.support import CORPUS, SIX_REQUESTS, TRAINING_EDITS, prepared_once, tiny_model

WRAPPERS = ("rect", "prune", "nas")
DRAW = {"dtype": torch.float64}


def editor_for(name: str, model: EditableModel, **changed: Any) -> tuple[Editor[Any], Prepared]:
    changed["host_overrides"] = {"value_steps": 8} | changed.get("host_overrides", {})
    editor = load_editor(name, model, changed)
    return editor, prepared_once(editor, model)


def oriented(model: EditableModel, name: str, value: Tensor) -> Tensor:
    return value if isinstance(model.hf.get_submodule(name.removesuffix(".weight")), torch.nn.Linear) else value.t()


# ------------------------------------------------------------ hosts


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("host", ["ft_m", "grace", "rect", "no_such_editor"])
def test_a_host_that_does_not_locate_is_refused(name: str, host: str, tiny: EditableModel) -> None:
    with pytest.raises(UnsupportedModel, match=f"'{host}'"):
        load_editor(name, tiny, {"host": host})


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("host", ["rome", "r_rome", "emmet", "pmet", "alphaedit"])
def test_every_locate_and_edit_method_can_be_a_host(name: str, host: str) -> None:
    tiny = tiny_model("gpt2")
    editor, prepared = editor_for(name, tiny, host=host)
    steps = list(run_edits(editor, tiny, SIX_REQUESTS[:2], prepared, mode="sequential" if host != "rome" else "single"))
    assert all(isinstance(step.patch, WeightPatch) for step in steps)
    assert len(steps) == 2


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_host_says_how_many_edits_go_at_once(name: str, tiny: EditableModel) -> None:
    assert load_editor(name, tiny).card.max_batch is None
    assert load_editor(name, tiny, {"host": "r_rome"}).card.max_batch == 1


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_misspelt_number_of_the_host_is_refused(name: str, tiny: EditableModel) -> None:
    editor = load_editor(name, tiny, {"host_overrides": {"no_such_setting": 1}})
    with pytest.raises(UnsupportedModel, match="no_such_setting"):
        editor.prepare(tiny, CORPUS)


@pytest.mark.parametrize("name", WRAPPERS)
def test_another_host_has_another_preparation(name: str, tiny: EditableModel) -> None:
    keys = {load_editor(name, tiny, {"host": host}).preparation_key() for host in ("memit", "alphaedit", "r_rome")}
    assert len(keys) == 3


# ------------------------------------------------------------ RECT


@pytest.mark.parametrize("kept", [0.1, 0.5, 1.0])
def test_rect_keeps_the_entries_that_change_most_relatively(kept: float) -> None:
    torch.manual_seed(0)
    delta, weight = torch.randn(6, 10), torch.randn(6, 10)
    slow = torch.zeros(6, 10)
    order = sorted(
        ((i, j) for i in range(6) for j in range(10)), key=lambda at: -abs(float(delta[at])) / abs(float(weight[at]))
    )
    for at in order[: round(60 * kept)]:
        slow[at] = delta[at]
    torch.testing.assert_close(rectified(delta, weight, kept).dense(), slow, rtol=0, atol=0)


def test_rect_is_sparse_where_that_is_smaller() -> None:
    delta, weight = torch.randn(6, 10), torch.randn(6, 10)
    assert isinstance(rectified(delta, weight, 0.2), Sparse)
    assert isinstance(rectified(delta, weight, 0.4), Dense)


def test_rect_leaves_its_share_of_the_hosts_update(tiny: EditableModel) -> None:
    editor, prepared = editor_for("rect", tiny, kept=0.25)
    whole = load_editor("memit", tiny, {"value_steps": 8}).edit(tiny, batch_of(SIX_REQUESTS[:2]), prepared)
    patch = editor.edit(tiny, batch_of(SIX_REQUESTS[:2]), prepared)
    assert isinstance(whole, WeightPatch)
    assert isinstance(patch, WeightPatch)
    for name in whole.updates:
        ours, theirs = patch.dense(name), whole.dense(name)
        assert int((ours != 0).sum()) == round(0.25 * theirs.numel())
        torch.testing.assert_close(ours[ours != 0], theirs[ours != 0], rtol=0, atol=0)


# ------------------------------------------------------------ PRUNE


def test_prune_shrinks_singular_values_by_the_published_formula() -> None:
    torch.manual_seed(0)
    total = 5 * torch.randn(6, 9, **DRAW)
    limit = 12.0
    extra = restraint(total, limit, 1.2)
    assert extra is not None
    before, after = (torch.linalg.svdvals(m) for m in (total, total + extra.dense().double()))
    slow = []
    for s in before.tolist():
        shrunk = (torch.log(torch.tensor(s)) - torch.log(torch.tensor(limit))) / torch.log(torch.tensor(1.2)) + limit
        slow.append(min(s, float(shrunk)) if s > limit else s)
    assert float(before[0]) > limit
    torch.testing.assert_close(after, torch.tensor(slow, **DRAW).sort(descending=True).values, rtol=1e-5, atol=1e-5)


def test_prune_leaves_a_small_sum_alone() -> None:
    assert restraint(torch.eye(4, **DRAW), 3.0, 1.2) is None


def test_prune_restrains_what_a_sequence_adds_up_to(tiny: EditableModel) -> None:
    editor, prepared = editor_for("prune", tiny, log_base=50.0)
    host = load_editor("memit", tiny, {"value_steps": 8})
    base = {n: tiny.parameter(n).clone() for n in editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), prepared).updates}
    ever = 0
    for asked in SIX_REQUESTS:
        raw = host.edit(tiny, batch_of([asked]), prepared)
        patch = editor.edit(tiny, batch_of([asked]), prepared)
        wanted = {}
        for name, first in base.items():
            start = oriented(tiny, name, first).double()
            total = oriented(tiny, name, tiny.parameter(name)).double() - start + raw.dense(name).double()
            u, s, vt = torch.linalg.svd(total, full_matrices=False)
            limit = float(torch.linalg.svdvals(start)[0])
            small = torch.where(
                s > limit, torch.minimum(s, (s.log() - s.new_tensor(limit).log()) / s.new_tensor(50.0).log() + limit), s
            )
            ever += int((s > limit).sum())
            wanted[name] = start + (u * small) @ vt
        tiny.push(patch)
        for name, target in wanted.items():
            torch.testing.assert_close(oriented(tiny, name, tiny.parameter(name)).double(), target, rtol=1e-4, atol=1e-4)
    assert ever, "no sum ever outgrew its weight, so that nothing was tested"


# ------------------------------------------------------------ NAS


def test_nas_takes_the_norm_at_subjects(tiny: EditableModel) -> None:
    _, prepared = editor_for("nas", tiny)
    requests = [e.request for e in TRAINING_EDITS]
    slow = [float(lookup_states(tiny, [r], BARE, tiny.anatomy.block, 2).outputs.norm()) for r in requests]
    assert prepared.meta["block_norms"]["2"] == pytest.approx(sum(slow) / len(slow), rel=1e-5)
    assert prepared.meta["block_norms"]["2"] == pytest.approx(subject_norm(tiny, requests, "block", 2), rel=1e-5)


def test_nas_is_its_host_with_anchored_values(tiny: EditableModel) -> None:
    editor, prepared = editor_for("nas", tiny)
    anchored = load_editor("memit", tiny, {"value_steps": 8, "anchor_norm": True})
    plain = load_editor("memit", tiny, {"value_steps": 8})
    ours = editor.edit(tiny, batch_of(SIX_REQUESTS[:2]), prepared)
    assert ours.digest == anchored.edit(tiny, batch_of(SIX_REQUESTS[:2]), prepared).digest
    assert ours.digest != plain.edit(tiny, batch_of(SIX_REQUESTS[:2]), prepared).digest


def test_nas_cannot_be_switched_off_by_an_override(tiny: EditableModel) -> None:
    editor, prepared = editor_for("nas", tiny)
    same, _ = editor_for("nas", tiny, host_overrides={"anchor_norm": False})
    batch = batch_of(SIX_REQUESTS[:1])
    assert same.edit(tiny, batch, prepared).digest == editor.edit(tiny, batch, prepared).digest
