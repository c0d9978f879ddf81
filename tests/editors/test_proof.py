"""Evaluation by proof: an answer that is taken is the answer that would be given, to the bit, on whatever night."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editors.model import EditableModel
from editors.patches.slots import Slot, SlotPatch
from editors.proof.answers import KeptAnswers
from editors.proof.folder import Proofs, asked_alone, kept_proofs, proof_folder
from editors.proof.proved import Proved, slot_site
from editors.proof.states import KeptStates, NamedGates
from tests.editors.test_ledger import EVERY, KINDS, push, world
from tests.support import SIX_REQUESTS, TEXTS, tiny_model
from warehouse.questions import Answer, Question

pytestmark = pytest.mark.law
ASKED = [Question(p, a) for r in EVERY for p in (r.prompt, *r.rephrases) for a in (r.target_new, "London")]
ASKED += [Question(text[:n], "river") for text in TEXTS for n in (7, 25, 40)]
PROMPTS = list(dict.fromkeys(q.prompt for q in ASKED))
MUCH = 1 << 30


def site(model: EditableModel) -> str:
    return model.anatomy.mlp.format(layer=1)


def proved(model: EditableModel, proofs: Proofs | None, *, base: bool = False) -> Proved:
    """As a night asks: rows run by themselves where their place in a pass shows on this machine."""
    alone = asked_alone(model, model.memories[f"slots:{site(model)}"])
    return Proved(model, site(model), proofs, base=base, alone=alone)


def answers(model: EditableModel, proofs: Proofs | None, *, base: bool = False) -> tuple[list, list, list, Proved]:
    """All that an evaluation asks, as numbers."""
    asked = proved(model, proofs, base=base)
    return asked.score(ASKED), asked.log_likelihoods(TEXTS), asked.next_token_log_probs(PROMPTS).tolist(), asked


def same(one: tuple, other: tuple) -> bool:
    return one[:3] == other[:3]


# ------------------------------------------------------------ the law


@pytest.mark.parametrize("kind", KINDS)
def test_with_and_without_proof_every_night_has_the_same_answers(kind: str, tmp_path: Path) -> None:
    @settings(max_examples=6, deadline=None)
    @given(st.permutations(range(len(EVERY))), st.sets(st.integers(1, len(EVERY) - 1), max_size=4))
    def law(order: list[int], cuts: set[int]) -> None:
        model, editor, prepared = tiny_model(kind), *world(kind)
        with TemporaryDirectory(dir=tmp_path) as folder:
            for first, last in zip([0, *sorted(cuts)], [*sorted(cuts), len(EVERY)], strict=True):
                push(model, kind, [EVERY[i] for i in order[first:last]])
                if first:
                    # An earlier edit is taken out, and comes back on no later night.
                    gone = next(r for s in model.memories[f"slots:{site(model)}"].slots.values() for r in s.requests)
                    model.push(editor.retract(model, [gone.request_id], prepared))
                # Read anew, as a process of the next night does.
                proofs = Proofs(Path(folder))
                for base in (True, False):
                    assert same(answers(model, proofs, base=base), answers(model, None, base=base))
                proofs.save(MUCH)

    law()


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_are_those_of_the_model_with_its_hooks(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    push(model, kind, EVERY)
    for base in (False, True):
        found = answers(model, Proofs(tmp_path), base=base)[0]
        plain = (tiny_model(kind) if base else model).score(ASKED)
        for one, other in zip(found, plain, strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4) and one.exact == other.exact


def test_what_no_slot_changes_is_never_asked_again(tmp_path: Path) -> None:
    model, proofs = tiny_model(), Proofs(tmp_path)
    push(model, "gpt2", EVERY[:3])
    answers(model, proofs, base=True)
    first = answers(model, proofs)[3].counts
    assert first.proved and first.asked
    again = answers(model, proofs)[3].counts
    assert (again.asked, again.proved) == (0, first.asked + first.proved)
    push(model, "gpt2", EVERY[3:4])
    later = answers(model, proofs)[3].counts
    assert 0 < later.asked < first.asked


def test_a_slot_that_is_taken_out_gives_the_answers_of_before_without_asking(tmp_path: Path) -> None:
    model, proofs = tiny_model(), Proofs(tmp_path)
    editor, prepared = world("gpt2")
    push(model, "gpt2", EVERY[:4])
    before = answers(model, proofs)
    push(model, "gpt2", EVERY[4:5])
    answers(model, proofs)
    model.push(editor.retract(model, [EVERY[4].request_id], prepared))
    after = answers(model, proofs)
    assert same(after, before) and after[3].counts.asked == 0


def test_free_text_and_the_base_are_those_of_the_models(tmp_path: Path) -> None:
    model = tiny_model()
    push(model, "gpt2", EVERY)
    proofs = Proofs(tmp_path)
    after, before = (proved(model, proofs, base=base) for base in (False, True))
    assert after.generate(PROMPTS[:4], 6) == model.generate(PROMPTS[:4], 6)
    assert before.generate(PROMPTS[:4], 6) == tiny_model().generate(PROMPTS[:4], 6)
    assert (after.digest, before.digest) == (model.digest, tiny_model().digest)
    assert model.memories[f"slots:{site(model)}"].silent is False


# ------------------------------------------------------------ the folder


def written(folder: Path) -> tuple[EditableModel, tuple]:
    model = tiny_model()
    push(model, "gpt2", SIX_REQUESTS)
    proofs = Proofs(folder)
    found = answers(model, proofs)
    answers(model, proofs, base=True)
    proofs.save(MUCH)
    return model, found


@pytest.mark.parametrize("kind", ["*.states", "*.opened", "*.answers"])
@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_a_file_that_is_damaged_or_lost_costs_passes_and_no_answer(kind: str, harm: str, tmp_path: Path) -> None:
    model, _ = written(tmp_path)
    for path in tmp_path.glob(kind):
        data = path.read_bytes()
        half = len(data) // 2
        path.write_bytes(data[:half] if harm == "cut" else data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :])
        if harm == "gone":
            path.unlink()
    for slots in (SIX_REQUESTS, EVERY):
        push(model, "gpt2", slots)
        assert same(answers(model, Proofs(tmp_path)), answers(model, None))


def plant(folder: Path, wrong: Answer, right: Answer) -> None:
    """Put a wrong answer in the place of a right one, in a file whose digest is its own."""
    held, other = KeptAnswers(folder), KeptAnswers(folder / "other")
    for key, answer in held.items():
        other.put(key, wrong if answer == right else answer)
    other.save()
    (path,) = (folder / "other").glob("*.answers")
    path.replace(folder / path.name)


def test_a_wrong_kept_answer_is_told_from_what_the_model_says(tmp_path: Path) -> None:
    """Its digest may be right: only asking again shows it."""
    model, wanted = written(tmp_path)
    right = wanted[0][0]
    plant(tmp_path, replace(right, exact=not right.exact), right)
    kept = proved(model, Proofs(tmp_path)).kept(ASKED)
    asked = dict(zip(ASKED, answers(model, None)[0], strict=True))
    assert set(kept) == set(ASKED)
    assert {question for question in kept if kept[question] != asked[question]} == {ASKED[0]}


def test_what_is_too_much_is_pruned_and_asked_anew(tmp_path: Path) -> None:
    model, wanted = written(tmp_path)
    proofs = Proofs(tmp_path)
    proofs.save(1000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2000
    assert same(answers(model, Proofs(tmp_path)), wanted)


def test_many_small_portions_become_one_and_open_alike(tmp_path: Path) -> None:
    model = tiny_model()
    push(model, "gpt2", EVERY)
    named = NamedGates.of(model.memories[f"slots:{site(model)}"].gates)
    rows = {bytes([i]) * 16: torch.randn(i % 4 + 1, 32, generator=torch.Generator().manual_seed(i)) * 3 for i in range(40)}
    whole = KeptStates(tmp_path / "whole")
    for row, states in rows.items():
        whole.put(row, states)
    wanted = whole.openings(named)
    assert wanted
    few = KeptStates(tmp_path / "few")
    for at, (row, states) in enumerate(rows.items()):
        few.put(row, states)
        if at % 4 == 3:
            few.openings(replace(named, gates=named.gates.only(torch.arange(at // 8 + 1)), names=named.names[: at // 8 + 1]))
    assert few.openings(named) == wanted
    assert len(list((tmp_path / "few").glob("*.states"))) < 8
    assert KeptStates(tmp_path / "few").openings(named) == wanted


def test_slots_with_one_gate_both_open(tmp_path: Path) -> None:
    model = tiny_model()
    mean, state = torch.zeros(32), torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    vector = state[0] / float(state.square().sum())
    slots = {
        name: Slot(name, (), state * 0, vector, 1.0, 0.1, torch.full((32,), v), mean) for name, v in (("a", 1.0), ("b", 2.0))
    }
    model.push(SlotPatch(site(model), mean, 0.5, 0.5, slots))
    named = NamedGates.of(model.memories[f"slots:{site(model)}"].gates)
    assert named.names[0] == named.names[1]
    kept = KeptStates(tmp_path)
    kept.put(b"r" * 16, state)
    assert [(token, slot) for token, slot, _ in kept.openings(named)[b"r" * 16]] == [(0, 0), (0, 1)]


def test_one_process_at_a_time_writes_a_folder(tmp_path: Path) -> None:
    model = tiny_model()
    with kept_proofs(tmp_path, model, site(model), MUCH) as first, kept_proofs(tmp_path, model, site(model), MUCH) as second:
        assert first is not None and second is None
    with kept_proofs(tmp_path, model, site(model), 0) as none:
        assert none is None


def test_another_base_site_or_thread_count_has_a_folder_of_its_own(tmp_path: Path) -> None:
    model = tiny_model()
    folders = {proof_folder(tmp_path, m, s) for m, s in ((model, "a"), (model, "b"), (tiny_model("llama"), "a"))}
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    folders.add(proof_folder(tmp_path, model, "a"))
    torch.set_num_threads(before)
    assert len(folders) == 4 and proof_folder(tmp_path, model, "a") in folders


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path)
    told = [Answer(True, 0.5, -1.25e-17, float("-inf"), "São \ud83d Paulo", 3), Answer(False, 0.0, -1e30, 2.5, "", 0)]
    for at, answer in enumerate(told):
        kept.put(bytes([at]) * 36, answer)
    kept.save()
    again = KeptAnswers(tmp_path)
    assert [again.get(bytes([at]) * 36) for at in range(2)] == told
    assert again.get(bytes([7]) * 36) is None


def test_only_slots_of_one_site_can_be_proved() -> None:
    model = tiny_model()
    assert slot_site(model) is None
    push(model, "gpt2", SIX_REQUESTS)
    assert slot_site(model) == site(model)
    other = SlotPatch(model.anatomy.mlp.format(layer=2), torch.zeros(32), 0.5, 0.5, {})
    model.push(other)
    assert slot_site(model) is None


def test_log_probabilities_of_a_shut_text_are_the_bases_own(tmp_path: Path) -> None:
    """So the divergence from the base is exactly nothing there."""
    model = tiny_model()
    push(model, "gpt2", SIX_REQUESTS[:1])
    proofs = Proofs(tmp_path)
    before, after = (proved(model, proofs, base=b).next_token_log_probs(PROMPTS) for b in (True, False))
    equal = [bool(np.array_equal(a, b)) for a, b in zip(before, after, strict=True)]
    assert any(equal) and not all(equal)
