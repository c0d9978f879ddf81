"""The core of the contract, over editors and architectures; `tests/matrix.py` says which pairs run."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from editors import catalogue
from editors.asking.calls import Generation
from editors.base import Editor, Prepared
from editors.errors import UnsupportedModel
from editors.model import EditableModel
from editors.patches.files import load_patch, save_patch
from editors.presets import load_editor
from editors.session import batch_of
from tests import matrix
from tests.architectures import SHAPES, tiny_editor
from tests.documents import EDITORS_PAGE, text_of, with_matrix
from tests.editors.test_contract import raises, whole_and_first
from tests.support import CORPUS, SIX_REQUESTS
from warehouse.questions import Question

#: The first's subject ends its prompt, where locate-and-edit methods write; the second is the shortest of the others.
FIRST, SECOND = SIX_REQUESTS[5], SIX_REQUESTS[0]


@cache
def tiny(shape: str) -> EditableModel:
    """One model for all tests of this module; each takes off what it put on."""
    return matrix.tiny(shape)


@cache
def prepared_for(shape: str, editor: str) -> tuple[Editor, Prepared]:
    made = tiny_editor(editor)
    return made, made.prepare(tiny(shape), CORPUS)


def answers(model: EditableModel) -> list[float]:
    """Log-probabilities of both answers, and of one that nobody edits."""
    asked = [Question(r.prompt, r.target_new) for r in (FIRST, SECOND)]
    return [a.log_prob for a in model.score([*asked, Question("A small boat went up the", "river")])]


def hooks(model: EditableModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


@pytest.mark.parametrize(("shape", "name"), matrix.cells())
def test_the_core_of_the_contract_holds(shape: str, name: str, tmp_path: Path) -> None:
    model = tiny(shape)
    state, base, said, worn = model.state_digest(), answers(model), whole_and_first(model, FIRST), hooks(model)
    editor, prepared = prepared_for(shape, name)
    try:
        first = editor.edit(model, batch_of([FIRST]), prepared)
        assert (model.state_digest(), answers(model), hooks(model)) == (state, base, worn), "it did not leave it as it was"
        assert first.kind == catalogue.editor_class(name).card.patch_kind
        model.push(first)
        after, one = whole_and_first(model, FIRST), answers(model)
        # Of its prompts and neurons a random model makes little: that something changed is all that it can be held to.
        assert after != said if name == "knowledge_neurons" else raises(name, said, after)
        prompts = [FIRST.prompt, "A small boat"]
        cached = model.runner.generate(prompts, Generation(3))
        assert cached == model.runner.generate(prompts, Generation(3, use_cache=False))
        if (shape, name) in matrix.in_sequence():
            second, state_of_one = editor.edit(model, batch_of([SECOND]), prepared), model.state_digest()
            model.push(second)
            assert answers(model) != one
            model.rollback(1)
            assert (model.state_digest(), answers(model)) == (state_of_one, one), "a rolled-back edit left a trace"
        model.rollback(0)
        assert (model.state_digest(), answers(model), hooks(model)) == (state, base, worn), "it did not roll back"
        save_patch(first, tmp_path / "patch")
        loaded = load_patch(tmp_path / "patch")
        model.push(loaded)
        assert loaded.digest == first.digest and answers(model) == one, "a saved patch is another"
    finally:
        model.rollback(0)


# ------------------------------------------------------------ the sample


def test_the_sample_covers_every_pair_of_a_trait_and_a_family() -> None:
    family = {name: catalogue.editor_class(name).card.family for name in catalogue.EDITORS}
    covered = {(trait, family[editor]) for shape, editor in matrix.sample() for trait in matrix.traits_of(shape)}
    assert covered == {(trait, each) for trait in matrix.TRAITS for each in family.values()}


def test_the_sample_draws_every_editor_that_does_not_run_everywhere_and_each_once_or_so() -> None:
    drawn = [editor for _, editor in matrix.sample()]
    assert set(drawn) == set(catalogue.EDITORS) - set(matrix.EVERYWHERE)
    assert len(drawn) <= len(set(drawn)) + len(matrix.TRAITS)
    assert set(matrix.EVERYWHERE) <= set(catalogue.EDITORS)


def test_traits_are_those_of_the_architectures() -> None:
    """By what their papers and configurations say, not by what is read from the models."""
    assert {trait: {s for s in SHAPES if trait in matrix.traits_of(s)} for trait in matrix.TRAITS} == {
        "gated": {"mistral", "qwen2", "qwen3", "smollm3", "phi3", "olmo2", "gemma2", "gemma3_text"},
        "parallel": {"gptj", "gpt_neox", "falcon", "falcon-two-norms", "falcon-one-norm"},
        "biased": {"gptj", "gpt_neox", "gpt_neox-sequential", "opt"},
        "tied": {"opt", "falcon", "falcon-two-norms", "falcon-one-norm", "smollm3", "gemma2", "gemma3_text"},
        "post-norm": {"olmo2", "gemma2", "gemma3_text"},
    }


def test_the_readme_shows_what_is_tested_where() -> None:
    page = text_of(EDITORS_PAGE)
    assert page == with_matrix(page), "run `python -m tests.documents`"


# ------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", [n for n in catalogue.EDITORS if not catalogue.editor_class(n).card.behind_norm])
def test_an_editor_whose_card_takes_no_norm_behind_the_feed_forward_refuses_to_edit_with_it(name: str) -> None:
    """Also where it was loaded for another model, so that its card was not asked."""
    model, made = tiny("olmo2"), tiny_editor(name)
    with pytest.raises(UnsupportedModel, match="norms it in between"):
        made.edit(model, batch_of([FIRST]), made.prepare(model, CORPUS))


@pytest.mark.parametrize("shape", [s for s in SHAPES if "post-norm" in matrix.traits_of(s)])
def test_it_is_refused_when_it_is_loaded_for_such_a_model(shape: str) -> None:
    for name in catalogue.EDITORS:
        if not matrix.takes(name, shape):
            with pytest.raises(UnsupportedModel, match=f"{name} writes .* norms it in between"):
                load_editor(name, tiny(shape))
