"""Causal tracing, the vocabulary lens and the weight footprint."""

from __future__ import annotations

import pytest
import torch

from editors.analysis.causal_trace import SITES, causal_trace
from editors.analysis.footprint import effective_rank, footprint
from editors.analysis.lens import lens_ranks
from editors.errors import InvalidRequest
from editors.model import EditableModel
from editors.patches.weight import LowRank, WeightPatch

PROMPT, SUBJECT, ANSWER = "The birthplace of Ada Lovelace is", "Ada Lovelace", "New York"


def test_every_state_of_the_last_layer_at_the_last_token_brings_the_next_token_back(tiny: EditableModel) -> None:
    # The next token is read from that state alone, so restoring it undoes the noise wholly.
    found = causal_trace(tiny, PROMPT, SUBJECT, "is", samples=3)
    assert found.restored["block"][-1, -1] == pytest.approx(found.clean, rel=1e-4)


def test_a_token_before_the_subject_changes_nothing(tiny: EditableModel) -> None:
    found = causal_trace(tiny, PROMPT, SUBJECT, ANSWER, samples=3)
    before = found.restored["block"][: found.subject.start]
    torch.testing.assert_close(before, torch.full_like(before, found.corrupted), rtol=1e-4, atol=0)


def test_tracing_equals_one_run_for_each_state(tiny: EditableModel) -> None:
    found = causal_trace(tiny, PROMPT, SUBJECT, ANSWER, samples=1, noise=2.0, seed=5)
    ids = torch.tensor([tiny.tokenizer(f"{PROMPT} {ANSWER}")["input_ids"]])
    start = len(tiny.tokenizer(PROMPT)["input_ids"])
    spread = tiny.hf.get_input_embeddings().weight.std()
    draw = torch.randn(1, len(found.subject), 32, generator=torch.Generator().manual_seed(5)) * 2.0 * spread
    embedded = tiny.hf.get_input_embeddings()(ids)
    path = tiny.anatomy.block.format(layer=1)
    kept: list[torch.Tensor] = []
    undo = tiny.hook(path, lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        tiny.hf(inputs_embeds=embedded)
        undo()
        token = found.subject[-1]

        def restore(_module: object, _inputs: object, output: object) -> object:
            state = (output[0] if isinstance(output, tuple) else output).clone()  # pyright: ignore
            state[0, token] = kept[0][0, token]
            return (state, *output[1:]) if isinstance(output, tuple) else state

        blurred = embedded.clone()
        blurred[:, found.subject.start : found.subject.stop] += draw
        undo = tiny.hook(path, restore)
        logits = tiny.hf(inputs_embeds=blurred).logits
        undo()
    slow = logits[0, start - 1 : -1].log_softmax(-1).gather(1, ids[0, start:, None]).sum().exp()
    assert found.restored["block"][token, 1] == pytest.approx(float(slow), rel=1e-4)


def test_tracing_leaves_no_hook(tiny: EditableModel) -> None:
    before = tiny.state_digest(), sum(len(m._forward_hooks) for m in tiny.hf.modules())
    causal_trace(tiny, PROMPT, SUBJECT, ANSWER, samples=2)
    assert before == (tiny.state_digest(), sum(len(m._forward_hooks) for m in tiny.hf.modules()))


def test_the_map_has_a_row_a_token_and_a_column_a_layer(tiny: EditableModel) -> None:
    found = causal_trace(tiny, PROMPT, SUBJECT, ANSWER, samples=2)
    assert {site: tuple(found.restored[site].shape) for site in SITES} == dict.fromkeys(SITES, (len(found.tokens), 4))
    assert SUBJECT in "".join(found.tokens[found.subject.start : found.subject.stop])


@pytest.mark.parametrize("subject, answer", [("Grace Hopper", "Paris"), (SUBJECT, " ")])
def test_what_cannot_be_traced_is_refused(tiny: EditableModel, subject: str, answer: str) -> None:
    with pytest.raises(InvalidRequest):
        causal_trace(tiny, PROMPT, subject, answer)


def test_lens_ranks_equal_sorting_the_vocabulary(tiny: EditableModel) -> None:
    ranks = lens_ranks(tiny, [PROMPT, "France lies in"], [SUBJECT, "France"], [ANSWER, "Japan"])
    kept: list[torch.Tensor] = []
    undo = tiny.hook(tiny.anatomy.mlp.format(layer=2), lambda _m, _i, out: kept.append(out))
    with torch.no_grad():
        tiny.hf(input_ids=torch.tensor([tiny.tokenizer("France")["input_ids"]]))
        undo()
        order = tiny.head(tiny.hf.get_submodule(tiny.anatomy.final_norm)(kept[0][0, -1])).argsort(descending=True).tolist()
    own = tiny.tokenizer("France lies in Japan")["input_ids"][len(tiny.tokenizer("France lies in")["input_ids"]) :]
    assert int(ranks.fact[1, 2]) == min(order.index(i) for i in own)


def test_hits_grow_with_k(tiny: EditableModel) -> None:
    ranks = lens_ranks(tiny, [PROMPT], [SUBJECT], [ANSWER])
    for near, far in zip(ranks.hit(10), ranks.hit(50), strict=True):
        assert bool((near <= far).all())
    assert float(ranks.hit(tiny.vocab_size)[1].min()) == 1.0


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0]))) == pytest.approx(3.0)
    assert effective_rank(torch.zeros(3, 3)) == 0.0


def test_the_footprint_of_a_rank_one_patch_is_one_parameter_of_rank_one(tiny: EditableModel) -> None:
    path = tiny.anatomy.mlp_out.format(layer=2) + ".weight"
    left, right = torch.randn(32, 1), torch.randn(96, 1)
    tiny.push(WeightPatch({path: LowRank(left, right)}))
    (found,) = footprint(tiny)
    assert found.parameter == path
    assert found.effective_rank == pytest.approx(1.0, abs=0.05)
    assert found.norm_ratio == pytest.approx(float((left @ right.t()).norm() / tiny.base_parameter(path).norm()), rel=1e-4)
    tiny.rollback(0)
    assert footprint(tiny) == []
