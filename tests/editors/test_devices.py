"""Editing, asking and exporting on a device that is not the CPU: a pretend one, and each real one that is present."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editors import catalogue, precision
from editors.analysis.causal_trace import causal_trace
from editors.analysis.footprint import footprint
from editors.analysis.lens import lens_ranks
from editors.asking.calls import Generation
from editors.base import Patch, Prepared
from editors.export.adapter import write_adapter
from editors.export.plain import materialise
from editors.model import EditableModel
from editors.patches.files import load_patch, save_patch
from editors.patches.weight import LowRank, WeightPatch
from editors.presets import load_editor
from editors.session import batch_of
from tests.editors.test_contract import raises, whole_and_first
from tests.elsewhere import NAME, OtherDevice, at_work, possible
from tests.stand_ins import Ask
from tests.support import CORPUS, SIX_REQUESTS, prepared_once, request, tiny_model
from warehouse.records import Checkpoint

ASKED = request(1, "Ada Lovelace", "Paris", prompt="Where was this person born: {}")
#: One of each way to write: a solution at keys, a spread over layers, running statistics, gradients, a module beside a layer,
#: slots, a memory.
FEW = ("r_rome", "memit", "ultraedit", "ft_m", "t_patcher", "ledger", "grace")
#: Less training where it takes long: what is asked here is where tensors lie.
SHORT: dict[str, dict[str, int]] = {
    "adalora": {"num_steps": 16},
    "cnp": {"film_updates": 8, "scope_updates": 4},
    "enn": {"updates": 2, "training_steps": 1},
    "knowledge_editor": {"updates": 2},
    "malmen": {"updates": 2},
    "mend": {"updates": 2},
    "serac": {"answer_updates": 8, "scope_updates": 4},
}


def on(device: torch.device, kind: str = "gpt2", dtype: torch.dtype = torch.float32) -> EditableModel:
    plain = tiny_model(kind)
    hf: Any = plain.hf
    hf.to(device, dtype)
    # torch moves a tensor that two modules share to a real device once, to the pretend one twice.
    hf.tie_weights()
    return EditableModel(hf, plain.tokenizer, name=plain.name)


def lie_on_the_cpu(found: Patch | Prepared) -> bool:
    return all(tensor.device.type == "cpu" for tensor in found.tensors.values())


def says(model: EditableModel) -> tuple[list[float], list[str]]:
    answers = model.score([Ask(r.prompt, r.target_new) for r in (ASKED, *SIX_REQUESTS)])
    return [a.log_prob for a in answers], model.generate([ASKED.prompt, "A small boat"], 6)


def is_worn_alike_and_taken_off(
    name: str, model: EditableModel, here: EditableModel, state: str, before: tuple[float, float]
) -> None:
    """Both wear the edit: it holds on `model`, they say the same, and without it `model` is what it was.

    Args:
        state, before: `state_digest` and `whole_and_first` of the model without it.
    """
    assert raises(name, before, whole_and_first(model, ASKED))
    (scores, texts), (scores_here, texts_here) = says(model), says(here)
    assert scores == pytest.approx(scores_here, abs=1e-3)
    assert texts == texts_here
    model.rollback(0)
    assert model.state_digest() == state and whole_and_first(model, ASKED) == before


def is_edited_as_on_the_cpu(name: str, model: EditableModel, prepared: Prepared, folder: Path) -> None:
    """The edit holds there, its file has the same effect here, and it can be taken off."""
    kind = "llama" if "llama" in model.name else "gpt2"
    editor = load_editor(name, model, SHORT.get(name))
    state, before = model.state_digest(), whole_and_first(model, ASKED)
    patch = editor.edit(model, batch_of([ASKED]), prepared)
    assert lie_on_the_cpu(patch) and model.state_digest() == state
    save_patch(patch, folder)
    loaded, here = load_patch(folder), tiny_model(kind)
    assert loaded.digest == patch.digest
    for wearer in (model, here):
        wearer.push(loaded)
    is_worn_alike_and_taken_off(name, model, here, state, before)


@pytest.mark.parametrize("name", catalogue.names())
def test_an_editor_prepares_and_edits_on_the_device(name: str, device: torch.device, tmp_path: Path) -> None:
    model = on(device)
    assert {p.device.type for p in model.hf.parameters()} == {device.type}
    prepared = load_editor(name, model, SHORT.get(name)).prepare(model, CORPUS)
    assert lie_on_the_cpu(prepared)
    is_edited_as_on_the_cpu(name, model, prepared, tmp_path)


@pytest.mark.parametrize("name", FEW)
def test_a_preparation_made_on_the_cpu_serves_on_the_device(name: str, device: torch.device, tmp_path: Path) -> None:
    here = tiny_model("llama")
    is_edited_as_on_the_cpu(name, on(device, "llama"), prepared_once(load_editor(name, here), here), tmp_path)


@pytest.mark.parametrize("name", ("r_rome", "memit", "alphaedit", "minimal_patch", "prune", "ultraedit", "malmen", "ewc"))
def test_a_device_without_float64_has_it_from_the_cpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Apple's GPUs; a solver that forgot it is refused by the pretend device."""
    if not possible():
        pytest.skip("this machine has a real device, or a torch that cannot pretend")
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", (NAME,))
    with at_work(narrow_floats=True) as device:
        model = on(device)
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(2, device=device).double()
        prepared = load_editor(name, model, SHORT.get(name)).prepare(model, CORPUS)
        assert lie_on_the_cpu(prepared)
        is_edited_as_on_the_cpu(name, model, prepared, tmp_path)


@pytest.mark.parametrize("name", ("pmet", "lora"))
def test_a_half_precision_model_is_edited_on_the_device(name: str, device: torch.device) -> None:
    model = on(device, "llama", torch.bfloat16)
    editor, before = load_editor(name, model), whole_and_first(model, ASKED)
    model.push(editor.edit(model, batch_of([ASKED]), editor.prepare(model, CORPUS)))
    assert raises(name, before, whole_and_first(model, ASKED))


@pytest.mark.parametrize("name", ("ledger", "wise"))
def test_edits_on_edits_replay_from_their_files(name: str, device: torch.device) -> None:
    model = on(device)
    editor, here = load_editor(name, model), tiny_model()
    prepared = prepared_once(load_editor(name, here), here)
    for asked in SIX_REQUESTS[:2]:
        model.push(editor.edit(model, batch_of([asked]), prepared))
    state, said = model.state_digest(), says(model)
    for patch in model.patches:
        here.push(patch)
    assert said[0] == pytest.approx(says(here)[0], abs=1e-3)
    model.rollback(1)
    model.push(here.patches[1])
    assert model.state_digest() == state and says(model) == said


def test_the_model_answers_as_on_the_cpu(device: torch.device, tiny: EditableModel) -> None:
    there = on(device, tiny.name.removeprefix("tiny-"))
    prompts = [r.prompt for r in SIX_REQUESTS]
    assert there.base_digest == tiny.base_digest
    assert says(there)[0] == pytest.approx(says(tiny)[0], abs=1e-4)
    assert there.generate(prompts, 8) == tiny.generate(prompts, 8)
    assert there.next_token_log_probs(prompts) == pytest.approx(tiny.next_token_log_probs(prompts), abs=1e-4)
    texts = list(CORPUS.texts[:2])
    assert [v for v, _ in there.log_likelihoods(texts)] == pytest.approx([v for v, _ in tiny.log_likelihoods(texts)], abs=1e-3)


def test_what_is_drawn_is_drawn_as_on_the_cpu(device: torch.device, tiny: EditableModel) -> None:
    there, prompts = on(device, tiny.name.removeprefix("tiny-")), [r.prompt for r in SIX_REQUESTS]
    options = Generation(8, sample=True, seed=3)
    drawn = there.runner.generate(prompts, options)
    assert drawn == tiny.runner.generate(prompts, options)
    assert drawn != tiny.runner.generate(prompts, Generation(8))


def test_shared_beginnings_run_once_on_the_device(device: torch.device, tiny: EditableModel) -> None:
    there = on(device, tiny.name.removeprefix("tiny-"))
    shown = "The capital of France is Paris, and the capital of Japan is Tokyo. " * 2
    asked = [Ask(f"{shown}The capital of {place} is", answer) for place in ("Poland", "Brazil") for answer in ("Riga", "Oslo")]
    assert [a.log_prob for a in there.score(asked)] == pytest.approx([a.log_prob for a in tiny.score(asked)], abs=1e-3)


@pytest.mark.parametrize("name", ("memit", "ledger", "t_patcher"))
def test_an_edited_model_is_exported_for_the_cpu(name: str, device: torch.device, tmp_path: Path) -> None:
    model = on(device)
    editor, here = load_editor(name, model), tiny_model()
    model.push(editor.edit(model, batch_of([ASKED]), prepared_once(load_editor(name, here), here)))
    checkpoint = Checkpoint(
        checkpoint_id=model.digest, parent=None, base_model="tiny", base_revision="local", base_digest=model.base_digest,
        patch_digests=tuple(p.digest for p in model.patches), created_at=datetime(2026, 11, 1, tzinfo=UTC),
    )  # fmt: skip
    loaded = EditableModel.from_pretrained(str(materialise(model, checkpoint, tmp_path / "plain").folder))
    assert says(loaded)[0] == pytest.approx(says(model)[0], abs=1e-3)
    if name == "memit":
        assert write_adapter(model, tmp_path / "adapter", base="tiny")


def test_a_model_is_looked_into_on_the_device(device: torch.device, tiny: EditableModel) -> None:
    there = on(device, tiny.name.removeprefix("tiny-"))
    for look in (
        lambda m: causal_trace(m, ASKED.prompt, ASKED.subject, "London", samples=2).restored["mlp"],
        lambda m: lens_ranks(m, [ASKED.prompt], [ASKED.subject], ["London"]).fact,
    ):
        torch.testing.assert_close(look(there), look(tiny), atol=1e-4, rtol=1e-3)
    there.push(WeightPatch({f"{there.anatomy.mlp_out.format(layer=1)}.weight": LowRank(torch.ones(32, 1), torch.ones(96, 1))}))
    assert [row.effective_rank for row in footprint(there)] == [pytest.approx(1.0, abs=1e-2)]


# ------------------------------------------------------------ the pretend device itself


@pytest.fixture
def elsewhere() -> Iterator[torch.device]:
    if not possible():
        pytest.skip("this machine has a real one, or a torch that cannot pretend")
    with at_work() as pretended:
        yield pretended


@pytest.mark.parametrize(
    "operation",
    [
        lambda here, there: there + here,
        lambda here, there: here.mul_(there),
        lambda here, there: torch.cat([there, here]),
        lambda here, there: torch.where(here > 0, there, there),
        lambda here, there: torch.nn.functional.embedding(here.long(), there[:, None]),
        lambda here, there: here[there.long()],
        lambda here, there: there.index_put((torch.arange(3),), here),
        lambda here, there: there.numpy(),
        lambda here, there: torch.rand(3, device=there.device),
        lambda here, there: torch.multinomial(there, 1),
    ],
)
def test_the_pretend_device_refuses_what_a_gpu_would(operation: Any, elsewhere: torch.device) -> None:
    here = torch.arange(1.0, 4.0)
    with pytest.raises((OtherDevice, RuntimeError, TypeError), match="device"):
        operation(here, here.to(elsewhere))


def test_the_pretend_device_computes_and_differentiates_like_the_cpu(elsewhere: torch.device) -> None:
    def work(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True)
        y = x.clone()
        y[1:] *= 2.0
        y[:, :2] = torch.tensor(3.0)
        y[0, torch.tensor([2, 3])] = 1.0
        (y.view(2, -1).t() @ x[:, :2].reshape(2, -1)).relu().sum().backward()
        assert x.grad is not None
        return torch.cat([y.detach(), x.grad, x.detach().squeeze_(0).t().contiguous().t()])

    start = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(work(start.to(elsewhere)).cpu(), work(start))
