"""What every editor of the catalogue must do, run over all of them on tiny models."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from editors import catalogue, presets
from editors.asking.calls import Generation
from editors.asking.tokens import continuation_of, encode_rows
from editors.base import MODES, Editor, Patch, Prepared, Workbench
from editors.errors import InvalidRequest, UnsupportedMode, UnsupportedModel
from editors.model import EditableModel
from editors.patches.files import load_patch, save_patch
from editors.presets import load_editor
from editors.session import batch_of, run_edits
from tests.stand_ins import Ask, Killed
from tests.support import CORPUS, SIX_REQUESTS, request, tiny_model
from warehouse.records import EditRequest

#: `errata editors test` names one editor, perhaps of another package; else all of them.
ASKED = os.environ.get("ERRATA_CONTRACT_EDITOR")
NAMES = [ASKED] if ASKED else catalogue.names()
KINDS = ("gpt2", "llama")


@dataclass(frozen=True)
class History:
    """Six edits in sequence, made once: what each left behind, and the answers and weights after it."""

    patches: tuple[Patch, ...]
    states: tuple[str, ...]
    answers: tuple[list[float], ...]


def family_of(name: str) -> str:
    return catalogue.editor_class(name).card.family


def shows(name: str, before: float, after: float) -> bool:
    """Did one edit of a sequence make its answer likelier?

    All methods that train on the answer, or were trained to edit, must. A random model hardly reads what stands before the
    last token: of locate-and-edit methods more is asked where they can be held to it, in single edits at that token
    (`test_targets_of_one_to_twelve_tokens_are_edited`); of in-context methods in `tests/quality`, on a model that reads.
    """
    return abs(after - before) > 1e-4 if family_of(name) in ("direct", "in_context") else after > before


def raises(name: str, before: tuple[float, float], after: tuple[float, float]) -> bool:
    """Did a single edit make its answer likelier, where the subject ends the prompt?

    Of a long answer a locate-and-edit method writes what is read at the subject's last token, which is the answer's first
    token; those behind it a random model makes up from themselves. So one of the two has to rise there; elsewhere the whole.
    """
    rises = [now > then for then, now in zip(before, after, strict=True)]
    if family_of(name) == "in_context":
        return after != before
    return any(rises) if family_of(name) == "direct" else rises[0]


def whole_and_first(model: EditableModel, asked: EditRequest) -> tuple[float, float]:
    """Log-probability of the answer and of its first token."""
    (row,) = encode_rows(model.tokenizer, [asked.prompt], [continuation_of(asked.target_new)])
    first = model.next_token_log_probs([asked.prompt])[0, row.ids[row.start]]
    return model.score([Ask(asked.prompt, asked.target_new)])[0].log_prob, float(first)


@cache
def preparation(name: str, kind: str) -> Prepared:
    model = tiny_model(kind)
    return load_editor(name, model).prepare(model, CORPUS)


def ready(name: str, kind: str) -> tuple[EditableModel, Editor, Prepared]:
    model = tiny_model(kind)
    return model, load_editor(name, model), preparation(name, kind)


def answers(model: EditableModel) -> list[float]:
    """Log-probabilities of new answers on edited prompts and rephrases, and of one that nobody edits."""
    asked = [Ask(prompt, r.target_new) for r in SIX_REQUESTS for prompt in (r.prompt, *r.rephrases)]
    return [a.log_prob for a in model.score([*asked, Ask("A small boat went up the", "river")])]


@cache
def history(name: str, kind: str) -> History:
    model, editor, prepared = ready(name, kind)
    states, said, patches = [model.state_digest()], [answers(model)], []
    for step in run_edits(editor, model, SIX_REQUESTS, prepared, mode="sequential"):
        patches.append(step.patch)
        states.append(model.state_digest())
        said.append(answers(model))
    return History(tuple(patches), tuple(states), tuple(said))


def pushed(name: str, kind: str) -> EditableModel:
    model = tiny_model(kind)
    for patch in history(name, kind).patches:
        model.push(patch)
    return model


def target_of(model: EditableModel, tokens: int) -> str:
    """A target of exactly so many tokens."""
    for text in ("Paris"[:n] + "qx7" * 4 for n in range(6)):
        for end in range(1, len(text) + 1):
            row = encode_rows(model.tokenizer, ["Where was this person born: Ada Lovelace"], [continuation_of(text[:end])])[0]
            if len(row.ids) - row.start == tokens:
                return text[:end]
    raise AssertionError(f"no target of {tokens} tokens")


# ------------------------------------------------------------ catalogue, card, preset, README


@pytest.mark.parametrize("name", NAMES)
def test_card_bears_the_catalogue_name_and_a_source(name: str) -> None:
    card = catalogue.editor_class(name).card
    assert card.name == name or ":" in name
    assert card.paper and card.title
    assert set(card.modes) <= set(MODES)
    assert not set(card.modes) & set(card.experimental)


@pytest.mark.parametrize("name", NAMES)
def test_refused_modes_come_with_a_reason(name: str) -> None:
    card = catalogue.editor_class(name).card
    assert set(card.modes) == set(MODES) or card.why_not


@pytest.mark.parametrize("name", NAMES)
def test_every_section_of_the_preset_is_a_valid_configuration(name: str) -> None:
    known = presets.sections(name)
    assert known, f"editors/presets/{name}.yaml is missing or empty"
    for key, section in known.items():
        if key != "default":
            catalogue.editor_class(name).config_class(**{**known.get("default", {}), **section})


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_setting_is_refused(name: str, tiny: EditableModel) -> None:
    with pytest.raises(UnsupportedModel, match="no_such_setting"):
        load_editor(name, tiny, {"no_such_setting": 1})


# ------------------------------------------------------------ purity, rollback, round trips


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_edit_leaves_the_model_as_it_found_it(name: str, kind: str) -> None:
    model, editor, prepared = ready(name, kind)
    model.push(history(name, kind).patches[0])
    state, digest, said = model.state_digest(), model.digest, answers(model)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())
    editor.edit(model, batch_of(SIX_REQUESTS[1:2]), prepared)
    assert (model.state_digest(), model.digest, answers(model)) == (state, digest, said)
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.hf.parameters())
    assert model.positions is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_edit_shows_in_the_answer_to_its_prompt(name: str, kind: str) -> None:
    said = history(name, kind).answers
    for number, asked in enumerate(SIX_REQUESTS):
        before, after = said[number][2 * number], said[number + 1][2 * number]
        assert shows(name, before, after), asked.request_id


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_patch_is_of_the_kind_that_the_card_names(name: str, kind: str) -> None:
    assert {p.kind for p in history(name, kind).patches} == {catalogue.editor_class(name).card.patch_kind}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_rollback_gives_back_the_base_exactly(name: str, kind: str) -> None:
    model, past = pushed(name, kind), history(name, kind)
    model.rollback(0)
    assert model.state_digest() == past.states[0]
    assert answers(model) == past.answers[0]
    assert not model.memories


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_rolling_back_a_suffix_is_as_if_it_had_never_been(name: str, kind: str) -> None:
    model, past = pushed(name, kind), history(name, kind)
    for depth in (5, 3, 1):
        model.rollback(depth)
        assert model.state_digest() == past.states[depth]
        assert answers(model) == past.answers[depth]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_saved_patches_load_with_equal_digest_and_effect(name: str, kind: str, tmp_path: Path) -> None:
    model, past = tiny_model(kind), history(name, kind)
    for number, patch in enumerate(past.patches):
        save_patch(patch, tmp_path / str(number))
        loaded = load_patch(tmp_path / str(number))
        assert loaded.digest == patch.digest
        model.push(loaded)
    assert model.state_digest() == past.states[-1]
    assert answers(model) == past.answers[-1]


@pytest.mark.parametrize("name", [name for name in NAMES if catalogue.editor_class(name).card.trains])
def test_a_preparation_killed_in_each_stage_goes_on_to_the_same_result(name: str, tmp_path: Path) -> None:
    """Killed once past the middle of every stage of its training; what was done is not done again."""
    model = tiny_model("gpt2")
    killed: dict[str, int] = {}
    first: dict[str, int] = {}

    def kill(step: int, total: int, note: str) -> None:
        stage = note.partition(":")[0] if ":" in note else ""
        if stage in killed and step:
            first.setdefault(stage, step)
        elif 2 * step > total:
            killed[stage] = step
            raise Killed

    while True:
        try:
            again = load_editor(name, model).prepare(model, CORPUS, Workbench(tmp_path, kill))
            break
        except Killed:
            pass
    assert killed, "a training that reports no progress cannot be watched"
    assert all(step > 1 for step in first.values()), "it began at its beginning again"
    assert again.digest == preparation(name, "gpt2").digest


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_for_layers_that_the_model_lacks_is_refused_by_layer(name: str, tiny: EditableModel) -> None:
    own = load_editor(name, tiny).config.model_dump()
    missing = {"layer": 9} if "layer" in own else {"layers": [9]} if "layers" in own else None
    if missing is None:
        pytest.skip("it is told no layer")
    editor = load_editor(name, tiny, missing)
    before = tiny.state_digest()
    with pytest.raises(UnsupportedModel, match="layer 9"):
        editor.edit(tiny, batch_of(SIX_REQUESTS[:1]), editor.prepare(tiny, CORPUS))
    assert tiny.state_digest() == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_one_patch_and_a_preparation_leaves_no_trace(name: str, kind: str) -> None:
    model = tiny_model(kind)
    editor, before, stream = load_editor(name, model), model.state_digest(), torch.get_rng_state()
    prepared = editor.prepare(model, CORPUS)
    assert model.state_digest() == before
    assert torch.equal(torch.get_rng_state(), stream), "it moved somebody else's random stream"
    assert not any(p.requires_grad or p.grad is not None for p in model.hf.parameters())
    again = editor.edit(model, batch_of(SIX_REQUESTS[:1]), prepared)
    assert again.digest == history(name, kind).patches[0].digest


# ------------------------------------------------------------ modes and batches


@pytest.mark.parametrize("name", NAMES)
def test_batches_that_do_not_divide_lose_no_request(name: str) -> None:
    model, editor, prepared = ready(name, "gpt2")
    largest = editor.card.max_batch
    if largest is not None and largest < 4:
        with pytest.raises(UnsupportedMode, match=editor.card.name):
            list(run_edits(editor, model, SIX_REQUESTS, prepared, mode="sequential-batch", batch_size=4))
        assert not model.patches
        return
    steps = list(run_edits(editor, model, SIX_REQUESTS, prepared, mode="sequential-batch", batch_size=4))
    assert [[r.request_id for r in s.batch.requests] for s in steps] == [["r1", "r2", "r3", "r4"], ["r5", "r6"]]
    assert len(model.patches) == 2
    changed = [a != b for a, b in zip(answers(model), history(name, "gpt2").answers[0], strict=True)][:12:2]
    assert all(changed), "some request of a batch left no trace on its own prompt"


@pytest.mark.parametrize("name", NAMES)
def test_modes_that_keep_nothing_leave_the_base(name: str) -> None:
    model, editor, prepared = ready(name, "llama")
    before = model.state_digest()
    for mode in set(editor.card.modes) & {"single", "batch"}:
        size = min(2, editor.card.max_batch or 2)
        for _ in run_edits(editor, model, SIX_REQUESTS[:3], prepared, mode=mode, batch_size=size):
            assert len(model.patches) == 1
        assert model.state_digest() == before


@pytest.mark.parametrize("name", NAMES)
def test_independent_edits_equal_single_edits(name: str) -> None:
    model, editor, prepared = ready(name, "gpt2")
    together = editor.edit_each(model, SIX_REQUESTS[:3], prepared)
    assert len(together) == 3
    assert editor.edit_each(model, [], prepared) == []
    for asked, patch in zip(SIX_REQUESTS, together, strict=False):
        leads = []
        for candidate in (patch, editor.edit(model, batch_of([asked]), prepared)):
            model.push(candidate)
            leads.append(model.score([Ask(asked.prompt, asked.target_new)])[0].log_prob)
            model.rollback(0)
        assert leads[0] == pytest.approx(leads[1], abs=0.05)


# ------------------------------------------------------------ requests


@pytest.mark.parametrize("name", NAMES)
def test_targets_of_one_to_twelve_tokens_are_edited(name: str) -> None:
    model, editor, prepared = ready(name, "gpt2")
    for tokens in (1, 2, 5, 12):
        # The subject ends the prompt, so that locate-and-edit methods write where the answer is read.
        asked = request(tokens, "Ada Lovelace", target_of(model, tokens), prompt="Where was this person born: {}")
        before = whole_and_first(model, asked)
        model.push(editor.edit(model, batch_of([asked]), prepared))
        assert raises(name, before, whole_and_first(model, asked)), f"{tokens} tokens"
        model.rollback(0)


#: Editors whose edit is told by its first form alone: those that find out whether a question is about it, in whatever form,
#: and two that write at what the first form reads (a net's shift, neurons).
BY_FIRST_FORM = ("serac", "cnp", "ike", "ice", "knowledge_editor", "knowledge_neurons")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BY_FIRST_FORM])
def test_an_edit_is_made_in_every_form_that_its_request_is_stated_in(name: str) -> None:
    model, editor, prepared = ready(name, "gpt2")
    one = request(1, "Ada Lovelace", "Paris", prompt="Where was this person born: {}")
    other = "Ships went from Riga to Oslo. Name the place where people like her were born, that is Ada Lovelace"
    base, said = whole_and_first(model, one.model_copy(update={"prompt": other})), []
    for asked in (one, one.model_copy(update={"also": (other,)})):
        for patch in (editor.edit(model, batch_of([asked]), prepared), *editor.edit_each(model, [asked], prepared)):
            model.push(patch)
            said.append(whole_and_first(model, one.model_copy(update={"prompt": other})))
            model.rollback(0)
    for alone, stated in zip(said[:2], said[2:], strict=True):
        # That it raises more than the edit of the first form alone is more than a random model can be held to.
        assert raises(name, base, stated) and stated != alone


@pytest.mark.parametrize(
    "broken",
    [request(7, "Ada", "Paris", prompt="She was born in"), request(8, "Ada Lovelace", "  ")],
    ids=["subject missing", "empty target"],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_request_that_cannot_be_applied_is_refused_by_name(name: str, broken: EditRequest) -> None:
    model, editor, prepared = ready(name, "gpt2")
    before = model.state_digest()
    with pytest.raises(InvalidRequest, match=f"{broken.request_id}|subject"):
        editor.edit(model, batch_of([broken]), prepared)
    assert model.state_digest() == before
    assert model.positions is None


# ------------------------------------------------------------ generation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_generation_is_the_same_with_the_cache_without_it_and_alone(name: str, kind: str) -> None:
    model = pushed(name, kind)
    prompts = [r.prompt for r in SIX_REQUESTS] + ["A small boat"]
    cached = model.runner.generate(prompts, Generation(8))
    assert cached == model.runner.generate(prompts, Generation(8, use_cache=False))
    assert cached == [model.runner.generate([p], Generation(8))[0] for p in prompts]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_the_batch(name: str, kind: str) -> None:
    model = pushed(name, kind)
    asked = [Ask(r.prompt, r.target_new) for r in SIX_REQUESTS]
    together = [a.log_prob for a in model.score(asked)]
    assert together == pytest.approx([model.score([a])[0].log_prob for a in asked], abs=1e-4)


@pytest.mark.parametrize("name", ["ft", "ft_m"])
def test_an_exact_edit_is_what_greedy_generation_says(name: str, tiny: EditableModel) -> None:
    editor = load_editor(name, tiny)
    asked = SIX_REQUESTS[2]
    tiny.push(editor.edit(tiny, batch_of([asked]), editor.prepare(tiny, CORPUS)))
    assert tiny.score([Ask(asked.prompt, asked.target_new)])[0].exact
    assert tiny.generate([asked.prompt], 8)[0].startswith(" " + asked.target_new)
