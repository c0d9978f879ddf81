"""Own and foreign answers of detectors, against the same by hand on a made-up space."""

from __future__ import annotations

import pytest
import torch

from editors.analysis import separability as module
from editors.analysis.separability import separability
from editors.errors import UnsupportedModel
from editors.ledger.ledger import LedgerConfig
from editors.ledger.subject_filter import SubjectSpace, prepare_space, space_texts, subject_states, wordings_for
from editors.mechanics.paraphrases import relation_templates
from editors.model import EditableModel
from tests.support import CORPUS, tiny_model

SUBJECTS = ("Grace Hopper", "Łódź", "Rome")


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest) -> EditableModel:
    return tiny_model(request.param)


def test_answers_are_those_of_one_detector_at_a_time(tiny: EditableModel) -> None:
    found = separability(tiny, CORPUS, SUBJECTS, LedgerConfig(layer=1, key_wordings=4, bank_tokens=40))[1]
    site = tiny.anatomy.mlp.format(layer=1)
    prepared = prepare_space(tiny, CORPUS, site, wordings=3, tokens=40, ridge=1e-2, seed=0)
    space = SubjectSpace(prepared.tensors["mean"], prepared.tensors["precision"], prepared.tensors["bank"])
    every = sorted({t for known in relation_templates(CORPUS.edits).values() for t in known})
    states = {s: subject_states(tiny, p := wordings_for(s, every, 4, ()), [s] * len(p), site) for s in SUBJECTS}

    def cosine(key: torch.Tensor, state: torch.Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(key, state - space.mean, dim=0))

    for i, subject in enumerate(SUBJECTS):
        made, asked = states[subject][0::2], states[subject][1::2]
        others = torch.cat([space.bank, *(states[s] for s in SUBJECTS if s != subject)])
        units = [(s - space.mean) / (s - space.mean).norm() for s in made]
        key = sum(units, torch.zeros(len(space.mean)))
        assert float(found["key"].own[i]) == pytest.approx(min(cosine(key, s) for s in asked), abs=1e-4)
        assert float(found["key"].foreign[i]) == pytest.approx(max(cosine(key, s) for s in others), abs=1e-4)
        vector = space.filter(made, 1e-2)
        assert float(found["filter"].own[i]) == pytest.approx(float(space.scores(vector, asked).min()), rel=1e-3, abs=1e-4)
        assert float(found["filter"].foreign[i]) == pytest.approx(float(space.scores(vector, others).max()), rel=1e-3, abs=1e-4)


def test_a_share_counts_the_subjects_whose_own_answers_are_above_all_others(tiny: EditableModel) -> None:
    found = separability(tiny, CORPUS, SUBJECTS, LedgerConfig(layer=0, key_wordings=4, bank_tokens=40))[0]["filter"]
    above = [own > foreign for own, foreign in zip(found.own.tolist(), found.foreign.tolist(), strict=True)]
    assert found.share == pytest.approx(sum(above) / len(SUBJECTS))


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_all_layers_in_one_pass_are_each_layer_by_itself(
    at_once: int, tiny: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the states of all layers are more than are held at once, and the model reads again for the rest."""
    config = LedgerConfig(layer=0, key_wordings=4, bank_tokens=40)
    states = len(space_texts(tiny, CORPUS, wordings=3, tokens=40, seed=0).known) + 4 * len(SUBJECTS) + 40
    monkeypatch.setattr(module, "FLOATS_AT_ONCE", at_once * states * 32)
    passes: list[None] = []
    tiny.hf.base_model.register_forward_pre_hook(lambda *_: passes.append(None))
    told: list[tuple[int, int]] = []
    found = separability(tiny, CORPUS, SUBJECTS, config, (3, 0, 1, 2), lambda done, total: told.append((done, total)))
    together = len(passes)
    assert told[0] == (0, told[0][1]) and told[-1][0] == told[-1][1] == told[0][1] and told == sorted(told)
    for layer in range(4):
        passes.clear()
        alone = separability(tiny, CORPUS, SUBJECTS, config.model_copy(update={"layer": layer}))
        for kind in ("key", "filter"):
            assert torch.equal(found[layer][kind].own, alone[layer][kind].own)
            assert torch.equal(found[layer][kind].foreign, alone[layer][kind].foreign)
        assert together == len(passes) * -(-4 // at_once)


def test_a_layer_that_is_not_there_is_refused(tiny: EditableModel) -> None:
    with pytest.raises(UnsupportedModel, match="7"):
        separability(tiny, CORPUS, SUBJECTS, LedgerConfig(layer=7))


@pytest.mark.parametrize(("subjects", "wordings"), [(("Rome", "Rome"), 4), (SUBJECTS, 1)])
def test_too_little_to_compare_is_refused(subjects: tuple[str, ...], wordings: int, tiny: EditableModel) -> None:
    with pytest.raises(ValueError, match="at least 2 of both"):
        separability(tiny, CORPUS, subjects, LedgerConfig(layer=1, key_wordings=wordings))
