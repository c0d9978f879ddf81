"""Digests of the weights that an engine holds: what vLLM joins, turns and fills up, and what it does not show."""

from __future__ import annotations

import torch

from editors.model import tensor_bytes
from tasks.proving.weights import OF_NOTHING, compare_weights, held_digests
from warehouse.digests import sha256_bytes
from warehouse.records import EngineFacts

SITE = "model.layers.0."


def digest(tensor: torch.Tensor) -> str:
    return sha256_bytes(tensor_bytes(tensor))


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_projections_stand_below_each_other() -> None:
    q, k, v, gate, up = (drawn(n, 4) for n in (8, 2, 3, 5, 6))
    found = held_digests(
        {
            f"{SITE}self_attn.q_proj.weight": q, f"{SITE}self_attn.k_proj.weight": k, f"{SITE}self_attn.v_proj.weight": v,
            f"{SITE}self_attn.q_proj.bias": q[:, 0], f"{SITE}mlp.gate_proj.weight": gate, f"{SITE}mlp.up_proj.weight": up,
            "model.layers.1.mlp.gate_proj.weight": gate,
        }
    )  # fmt: skip
    assert found == {
        f"{SITE}self_attn.qkv_proj.weight": digest(torch.cat([q, k, v])),
        f"{SITE}mlp.gate_up_proj.weight": digest(torch.cat([gate, up])),
    }


def test_embeddings_are_filled_up_with_zeros_and_gpt2s_matrices_are_turned() -> None:
    tokens, turned = drawn(65, 4), drawn(4, 12)
    found = held_digests({"transformer.wte.weight": tokens, "transformer.h.0.attn.c_attn.weight": turned,
                          "lm_head.weight": drawn(128, 4), "transformer.h.0.attn.c_attn.bias": drawn(12)})  # fmt: skip
    assert found == {
        "transformer.wte.weight": digest(torch.cat([tokens, torch.zeros(63, 4)])),
        "transformer.h.0.attn.c_attn.weight": digest(turned.t().contiguous()),
    }


def facts(**tensors: str) -> EngineFacts:
    return EngineFacts(model_class="X", dtype="float32", widths=(8,), tokenizer="t", tensors=tensors, held={"joined": "j"})


def test_what_is_equal_different_elsewhere_and_unknown_is_told_apart() -> None:
    shown = {"dp0:tp0:norm": "n", "dp0:tp1:norm": "n", "dp0:tp0:joined": "j", "dp0:tp0:head": "h", "dp0:tp0:down": OF_NOTHING,
             "dp0:tp0:up": "1", "dp0:tp1:up": "2", "dp0:tp0:lost": "other"}  # fmt: skip
    found = compare_weights(facts(norm="n", down="d", up="u", lost="l"), shown)
    assert (found.equal, found.different, found.elsewhere, found.unknown) == (2, ("lost",), 2, 1)
    assert found.sentence == "1 of 3 tensors are not the promoted ones: lost, 3 could not be compared"


def test_an_engine_that_has_moved_everything_shows_nothing() -> None:
    found = compare_weights(facts(down="d"), {"tp0:down": OF_NOTHING})
    assert found.sentence == "it shows none of its weights: 1 are kept elsewhere, 0 are unknown here"


def test_where_nothing_is_equal_the_dtype_may_be_another() -> None:
    assert "dtype float32, as the promoted" in compare_weights(facts(a="1", b="2"), {"a": "3", "b": "4"}).sentence
