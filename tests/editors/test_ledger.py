"""The ledger's laws: what is served is a function of the base and of the set of active edits, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editors.asking.calls import Generation
from editors.base import Prepared
from editors.ledger.ledger import Ledger
from editors.ledger.subject_filter import SubjectSpace
from editors.ledger.subject_values import group_by_subject, kept_prompts, solve_subject, without
from editors.mechanics.contexts import LookupRow, encode_namings
from editors.model import EditableModel
from editors.patches.files import load_patch, save_patch
from editors.patches.slots import Slot, SlotBook, SlotPatch, gates_of, slots_name
from editors.presets import load_editor
from editors.session import batch_of
from tests.support import CORPUS, SIX_REQUESTS, request, tiny_model
from warehouse.questions import Question
from warehouse.records import EditRequest

pytestmark = pytest.mark.law
KINDS = ("gpt2", "llama")
#: Six subjects, one of them with two more relations, and a subject that ends another.
DEATH = request(7, "Ada Lovelace", "Tokyo", prompt="{} died in", relation="P20")
MOTHER = request(8, "Ada Lovelace", "Mary", prompt="The mother of {} is", relation="P25")
YORK = request(9, "York", "Poland", prompt="{} lies in", relation="P17")
NEW_YORK = request(10, "New York", "Brazil", prompt="{} lies in", relation="P17")
EVERY = (*SIX_REQUESTS, DEATH, MOTHER, YORK, NEW_YORK)
QUICK = settings(max_examples=8, deadline=None)


@cache
def world(kind: str) -> tuple[Ledger, Prepared]:
    """One editor for all tests of a kind: it remembers the slots that it has solved."""
    model = tiny_model(kind)
    editor = load_editor("ledger", model, {"value_steps": 8, "stop_loss": None})
    assert isinstance(editor, Ledger)
    return editor, editor.prepare(model, CORPUS)


def push(model: EditableModel, kind: str, requests: Sequence[EditRequest]) -> SlotPatch:
    editor, prepared = world(kind)
    patch = editor.edit(model, batch_of(requests), prepared)
    model.push(patch)
    return patch


def wearing(kind: str, *batches: Sequence[EditRequest]) -> EditableModel:
    model = tiny_model(kind)
    for batch in batches:
        push(model, kind, batch)
    return model


def book_of(model: EditableModel) -> SlotBook:
    return model.memories[slots_name(model.anatomy.mlp.format(layer=1))]


def state(model: EditableModel) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The gates as tensors, and what the model answers."""
    asked = [Question(prompt, r.target_new) for r in EVERY for prompt in (r.prompt, *r.rephrases)]
    asked.append(Question("A small boat went up the", "river"))
    return vars(book_of(model).gates), [a.log_prob for a in model.score(asked)]


def same(one: EditableModel, other: EditableModel) -> bool:
    (gates, said), (others, saw) = state(one), state(other)
    return said == saw and all(torch.equal(gates[name], others[name]) for name in gates)


@cache
def reference(kind: str) -> EditableModel:
    return wearing(kind, EVERY)


@st.composite
def batchings(draw: st.DrawFn, items: tuple[EditRequest, ...] = EVERY) -> list[list[EditRequest]]:
    """Any order of the requests, cut anywhere."""
    order = draw(st.permutations(items))
    cuts = sorted(draw(st.sets(st.integers(1, len(items) - 1), max_size=len(items) - 1)))
    return [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, len(items)], strict=True)]


# ------------------------------------------------------------ a function of the set


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_and_any_batching_give_the_same_module(kind: str) -> None:
    @QUICK
    @given(batchings())
    def law(batches: list[list[EditRequest]]) -> None:
        assert same(wearing(kind, *batches), reference(kind))

    law()


@pytest.mark.parametrize("kind", KINDS)
def test_a_slot_is_solved_alike_beside_others_and_alone(kind: str) -> None:
    # A new editor has no slot in memory, so each is solved on the model as it stands.
    known, prepared = world(kind)
    fresh = Ledger(known.config)
    model = wearing(kind, SIX_REQUESTS[:2])
    patch = fresh.edit(model, batch_of([SIX_REQUESTS[5], SIX_REQUESTS[2]]), prepared)
    alone = known.edit(tiny_model(kind), batch_of([SIX_REQUESTS[2]]), prepared)
    made, expected = patch.changes["Alan Turing"], alone.changes["Alan Turing"]
    assert made is not None and expected is not None
    assert torch.equal(made.value, expected.value) and torch.equal(made.filter, expected.filter)
    assert (made.own, made.foreign) == (expected.own, expected.foreign)


@pytest.mark.parametrize("kind", KINDS)
def test_retracting_any_edits_gives_the_state_without_them(kind: str) -> None:
    editor, prepared = world(kind)

    @QUICK
    @given(batchings(), st.sets(st.sampled_from(range(len(EVERY))), min_size=1, max_size=len(EVERY) - 1))
    def law(batches: list[list[EditRequest]], out: set[int]) -> None:
        model = wearing(kind, *batches)
        model.push(editor.retract(model, [EVERY[i].request_id for i in sorted(out)], prepared))
        assert same(model, wearing(kind, [r for i, r in enumerate(EVERY) if i not in out]))

    law()


@pytest.mark.parametrize("kind", KINDS)
def test_superseding_is_as_if_the_old_edit_had_never_been(kind: str) -> None:
    newer = [request(20 + i, r.subject, "Warsaw", prompt=r.prompt.replace(r.subject, "{}"), relation=r.relation)
             for i, r in enumerate(EVERY)]  # fmt: skip

    @QUICK
    @given(st.sets(st.sampled_from(range(len(EVERY))), min_size=1))
    def law(changed: set[int]) -> None:
        model = wearing(kind, EVERY, [newer[i] for i in sorted(changed)])
        assert same(model, wearing(kind, [newer[i] if i in changed else r for i, r in enumerate(EVERY)]))

    law()


def test_adding_and_retracting_everything_gives_the_bases_answers() -> None:
    editor, prepared = world("gpt2")
    model = wearing("gpt2", EVERY)
    model.push(editor.retract(model, [r.request_id for r in EVERY], prepared))
    asked = [Question(r.prompt, r.target_new) for r in EVERY]
    assert [a.log_prob for a in model.score(asked)] == [a.log_prob for a in tiny_model("gpt2").score(asked)]
    assert not book_of(model).slots


def test_the_same_fact_under_another_name_is_retracted_by_that_name() -> None:
    editor, prepared = world("gpt2")
    model = wearing("gpt2", [SIX_REQUESTS[0]], [SIX_REQUESTS[0].model_copy(update={"request_id": "again"})])
    with pytest.raises(ValueError, match="no active edit r1;"):
        editor.retract(model, ["r1"], prepared)
    model.push(editor.retract(model, ["again"], prepared))
    assert not book_of(model).slots


@pytest.mark.parametrize("kind", KINDS)
def test_rollback_gives_every_earlier_state(kind: str) -> None:
    batches = [EVERY[:3], EVERY[3:7], EVERY[7:]]
    model = wearing(kind, *batches)
    for depth in (2, 1):
        model.rollback(depth)
        assert same(model, wearing(kind, *batches[:depth]))
    model.rollback(0)
    assert model.state_digest() == tiny_model(kind).state_digest() and not model.memories


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_patches_serve_and_grow_like_those_in_memory(kind: str, tmp_path: Path) -> None:
    editor, prepared = world(kind)
    first = wearing(kind, EVERY[:4], EVERY[4:8])
    first.push(editor.retract(first, ["r2"], prepared))
    model = tiny_model(kind)
    for number, patch in enumerate(first.patches):
        save_patch(patch, tmp_path / str(number))
        model.push(load_patch(tmp_path / str(number)))
    assert same(model, first)
    push(model, kind, EVERY[8:])
    assert same(model, wearing(kind, [r for r in EVERY if r.request_id != "r2"]))


# ------------------------------------------------------------ subjects


@pytest.mark.parametrize("kind", KINDS)
def test_several_edits_of_a_subject_share_one_slot_and_all_become_likelier(kind: str) -> None:
    three = [SIX_REQUESTS[0], DEATH, MOTHER]
    editor = load_editor("ledger", tiny_model(kind), {"value_steps": 25, "stop_loss": None})
    model, before = tiny_model(kind), tiny_model(kind)
    model.push(editor.edit(model, batch_of(three), world(kind)[1]))
    assert list(book_of(model).slots) == ["Ada Lovelace"]
    asked = [Question(r.prompt, r.target_new) for r in three]
    gains = [b.log_prob - a.log_prob for a, b in zip(before.score(asked), model.score(asked), strict=True)]
    assert min(gains) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_subject_that_ends_another_opens_only_its_own_slot(kind: str) -> None:
    model = wearing(kind, [YORK, NEW_YORK])
    opening = opened(model, ["York lies in", "New York lies in"])
    assert torch.equal(opening > 0, torch.tensor([[False, True], [True, False]]))  # slots by name: New York, York
    assert bool((opening.amax(1) == 1).all())


def opened(model: EditableModel, prompts: Sequence[str]) -> torch.Tensor:
    """(prompts, slots) how far each slot opens at the prompt's most opening token."""
    book, seen = book_of(model), []
    undo = model.hook("transformer.h.1.mlp" if hasattr(model.hf, "transformer") else "model.layers.1.mlp",
                      lambda _m, inputs, _o: seen.append(book.gates.opening(inputs[0])))  # fmt: skip
    for prompt in prompts:
        model.next_token_log_probs([prompt])
    undo()
    return torch.stack([s[0].amax(0) for s in seen])


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_opens_no_slot_is_answered_by_the_base_bit_for_bit(kind: str) -> None:
    model = wearing(kind, EVERY[:2])
    texts = ["A small boat", "went up the river", "in the evening", "because the wind was good"]
    quiet = [t for t, row in zip(texts, opened(model, texts), strict=True) if not bool(row.any())]
    assert quiet
    assert model.log_likelihoods(quiet) == tiny_model(kind).log_likelihoods(quiet)


@pytest.mark.parametrize("kind", KINDS)
def test_no_slot_opens_at_any_state_of_the_bank_that_is_told_from_its_subject(kind: str) -> None:
    book, bank = book_of(reference(kind)), world(kind)[1].tensors["bank"]
    told = torch.tensor([s.foreign < 0.9 * s.own for _, s in sorted(book.slots.items())])
    assert bool(told.any())
    assert not bool(book.gates.opening(bank)[:, told].any())


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_the_cache_equals_generation_without(kind: str) -> None:
    prompts = [r.prompt for r in EVERY] + ["A small boat"]
    runner = reference(kind).runner
    cached = runner.generate(prompts, Generation(6))
    assert cached == runner.generate(prompts, Generation(6, use_cache=False))
    assert cached[0] != tiny_model(kind).runner.generate(prompts[:1], Generation(6))[0]


# ------------------------------------------------------------ gates


def slot(name: str, seed: int, mean: torch.Tensor) -> Slot:
    random = torch.Generator().manual_seed(seed)
    states, vector, value = (torch.randn(n, len(mean), generator=random) for n in (3, 1, 1))
    own, foreign = float(1 + torch.rand(1, generator=random)), float(torch.rand(1, generator=random))
    return Slot(name, (), states, vector[0], own, foreign, value[0], mean)


def test_thresholds_equal_a_slow_loop_over_all_pairs() -> None:
    mean = torch.full((6,), 0.1)
    slots = [slot(n, i, mean) for i, n in enumerate("dacb")]
    gates = gates_of(slots, gap_share=0.3, ramp_share=0.5)
    for row, mine in enumerate(sorted(slots, key=lambda s: s.subject)):
        worst = mine.foreign
        for other in slots:
            if other is not mine:
                worst = max(worst, *(float(mine.filter @ (state - mean)) for state in other.states))
        worst = min(worst, 0.9 * mine.own)
        low = worst + 0.3 * (mine.own - worst)
        assert float(gates.low[row]) == pytest.approx(low, rel=1e-5)
        assert float(gates.high[row]) == pytest.approx(low + 0.5 * (mine.own - low), rel=1e-5)


def test_more_than_a_block_of_slots_has_the_thresholds_of_each_pair() -> None:
    slots = [slot(f"{i:04}", i, torch.zeros(6)) for i in range(300)]
    gates = gates_of(slots, gap_share=0.5, ramp_share=1.0)
    states = torch.stack([s.states for s in slots])
    for row in (0, 255, 256, 299):
        answers = states @ slots[row].filter
        answers[row] = float("-inf")
        worst = min(max(float(answers.max()), slots[row].foreign), 0.9 * slots[row].own)
        assert float(gates.low[row]) == pytest.approx((worst + slots[row].own) / 2, rel=1e-5)


@pytest.mark.parametrize(("answer", "share"), [(-1.0, 0.0), (0.2, 0.0), (0.5, 0.5), (0.8, 1.0), (3.0, 1.0)])
def test_a_gate_is_a_ramp_between_its_two_ends(answer: float, share: float) -> None:
    zeros = torch.zeros(2)
    one = Slot("a", (), torch.ones(1, 2), torch.tensor([1.0, 0.0]), own=1.4, foreign=-1.0, value=zeros, mean=zeros)
    gates = gates_of([one], gap_share=0.5, ramp_share=0.5)  # low .2, high .8
    assert float(gates.opening(torch.tensor([answer, 7.0]))) == pytest.approx(share, abs=1e-6)


def test_filters_answer_one_to_their_forms_and_have_the_least_variance() -> None:
    _, prepared = world("gpt2")
    space = SubjectSpace(prepared.tensors["mean"], prepared.tensors["precision"], prepared.tensors["bank"])
    forms = space.bank[:3]
    vector = space.filter(forms, 1e-9).double()
    assert torch.allclose((forms - space.mean).double() @ vector, torch.ones(3).double(), atol=1e-3)
    covariance = torch.linalg.inv(space.precision.double())
    least = vector @ covariance @ vector
    _, _, basis = torch.linalg.svd((forms - space.mean).double(), full_matrices=True)
    for step in basis[3:]:  # directions that change no answer to the forms
        moved = vector + 0.1 * vector.norm() * step
        assert float(moved @ covariance @ moved) > float(least)


# ------------------------------------------------------------ values


@pytest.mark.parametrize("kind", KINDS)
def test_kept_prompts_are_other_relations_that_the_base_answers_otherwise(kind: str) -> None:
    model = tiny_model(kind)
    asked = SIX_REQUESTS[0]
    templates = {
        "P19": ["{} was born in"], "P20": ["{} died in", "The place where {} died is"],
        "P25": ["The mother of {} is"], "P27": ["{} has a passport of"],
    }  # fmt: skip
    config = world(kind)[0].config.model_copy(update={"kept_wordings": 2, "spare_old": False, "kept_count": 9})
    offered = kept_prompts(model, [asked], templates, config)
    assert sorted(offered) == sorted(t.replace("{}", asked.subject) for r in ("P20", "P25", "P27") for t in templates[r])
    assert asked.rephrases[0] not in kept_prompts(
        model, [asked], {**templates, "P99": [asked.rephrases[0].replace(asked.subject, "{}")]}, config
    )
    spared = kept_prompts(model, [asked], templates, config.model_copy(update={"spare_old": True}))
    old = next_token(model, asked.prompt)
    assert spared == [p for p in offered if next_token(model, p) != old]
    sure = model.next_token_log_probs(offered).max(-1)
    assert list(sure) == pytest.approx(sorted(sure, reverse=True))
    assert kept_prompts(model, [asked], templates, config.model_copy(update={"kept_count": 2})) == offered[:2]


def test_a_relation_of_the_warehouse_that_the_base_knows_is_kept_even_with_the_old_answer() -> None:
    plain, template = SIX_REQUESTS[0], "The old town of {} is"
    asked = plain.model_copy(update={"other_relations": ("P20",)})
    prompt, repeated = template.replace("{}", asked.subject), {"P20": [template, template + " and"]}
    config = world("gpt2")[0].config.model_copy(update={"spare_old": True, "known_confidence": 0.9})

    def sure_of(share: float) -> EditableModel:
        """The model, answering everything with one token."""
        row = np.log(np.array([share, 1 - share], dtype=np.float32))
        return cast(EditableModel, SimpleNamespace(next_token_log_probs=lambda prompts: np.tile(row, (len(prompts), 1))))

    assert sorted(kept_prompts(sure_of(0.95), [asked], repeated, config)) == [prompt, prompt + " and"]
    assert kept_prompts(sure_of(0.85), [asked], repeated, config) == []
    assert kept_prompts(sure_of(0.95), [plain], repeated, config) == []
    edited = request(9, asked.subject, "Rome", prompt="{} died in", relation="P20")
    assert kept_prompts(sure_of(0.95), [asked, edited], repeated, config) == []


def test_a_known_relation_is_kept_in_every_form_that_edits_are_stated_in() -> None:
    asked = SIX_REQUESTS[0].model_copy(update={"other_relations": ("P20",)})
    wordings = {"P20": ["{} died in", "Question: where did {} die? Answer:", "The old town of {} is"]}
    config = world("gpt2")[0].config.model_copy(update={"spare_old": True, "known_confidence": 0.9, "known_kept": 1})
    row = np.log(np.array([0.95, 0.05], dtype=np.float32))
    sure = cast(EditableModel, SimpleNamespace(next_token_log_probs=lambda prompts: np.tile(row, (len(prompts), 1))))
    stated = {"P20": wordings["P20"][:2]}
    assert len(kept_prompts(sure, [asked], wordings, config)) == 1
    assert sorted(kept_prompts(sure, [asked], wordings, config, stated)) == sorted(
        t.replace("{}", asked.subject) for t in stated["P20"]
    )


def next_token(model: EditableModel, prompt: str) -> int:
    return int(model.next_token_log_probs([prompt])[0].argmax())


@pytest.mark.parametrize("field", ["rephrases", "carry_over"])
def test_values_never_see_what_measures_the_edit(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    asked = SIX_REQUESTS[0].model_copy(update={field: ("The birthplace of Ada Lovelace is", "Ada Lovelace died in")})
    templates = {"P19": ["The birthplace of {} is", "{} hails from"], "P20": ["{} died in"]}
    seen: list[str] = []

    def watch(model: EditableModel, prompts: Sequence[str], *more: Sequence[str], **named: Any) -> list[LookupRow]:
        seen.extend(prompts)
        return encode_namings(model, prompts, *more, **named)

    monkeypatch.setattr("editors.ledger.subject_values.encode_namings", watch)
    solve_subject(model, [asked], templates, 1, model.anatomy.mlp_out, world("gpt2")[0].config)
    assert "Ada Lovelace hails from" in seen and asked.prompt in seen
    assert not set(seen) & set(asked.measured)


def test_values_are_trained_on_the_wordings_that_a_request_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    brought = {"also": ("Chat: Ada Lovelace was born in",), "wordings": ("Ada Lovelace hails from",)}
    asked = SIX_REQUESTS[0].model_copy(update=brought)
    seen: list[str] = []

    def watch(model: EditableModel, prompts: Sequence[str], *more: Sequence[str], **named: Any) -> list[LookupRow]:
        seen.extend(prompts)
        return encode_namings(model, prompts, *more, **named)

    monkeypatch.setattr("editors.ledger.subject_values.encode_namings", watch)
    solve_subject(model, [asked], {"P19": ["{} came from"]}, 1, model.anatomy.mlp_out, world("gpt2")[0].config)
    assert {*asked.also, *asked.wordings} <= set(seen) and "Ada Lovelace came from" not in seen


def test_a_group_is_made_from_what_is_active_and_what_is_new() -> None:
    active = {"Ada Lovelace": (SIX_REQUESTS[0], DEATH)}
    newer = SIX_REQUESTS[0].model_copy(update={"request_id": "n", "target_new": "Oslo"})
    groups = group_by_subject(active, [SIX_REQUESTS[1], newer])
    assert {s: [r.request_id for r in g] for s, g in groups.items()} == {"Ada Lovelace": ["n", "r7"], "Grace Hopper": ["r2"]}
    assert without(active, ["r7"]) == {"Ada Lovelace": (SIX_REQUESTS[0],)}
