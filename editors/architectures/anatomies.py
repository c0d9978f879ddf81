"""The table of architectures: the only place that knows module paths, weight orientation and model types.

docs/ADDING_A_MODEL.md says how to add one, and which test tells whether it is right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from editors.architectures.anatomy import Anatomy
from editors.errors import UnsupportedModel

GPT2 = Anatomy(
    name="gpt2",
    block="transformer.h.{layer}",
    mlp="transformer.h.{layer}.mlp",
    mlp_in=("transformer.h.{layer}.mlp.c_fc",),
    mlp_out="transformer.h.{layer}.mlp.c_proj",
    attention="transformer.h.{layer}.attn",
    attention_out="transformer.h.{layer}.attn.c_proj",
    mlp_norm="transformer.h.{layer}.ln_2",
    final_norm="transformer.ln_f",
    embedding="transformer.wte",
    orientation="in_out",
    width="n_embd",
    depth="n_layer",
    inner="n_inner",
)
GPT_J = replace(
    GPT2,
    name="gptj",
    mlp_in=("transformer.h.{layer}.mlp.fc_in",),
    mlp_out="transformer.h.{layer}.mlp.fc_out",
    attention_out="transformer.h.{layer}.attn.out_proj",
    # One norm before both.
    mlp_norm="transformer.h.{layer}.ln_1",
    orientation="out_in",
    parallel=True,
    cache="layer_past",
)
GPT_NEOX = Anatomy(
    name="gpt_neox",
    block="gpt_neox.layers.{layer}",
    mlp="gpt_neox.layers.{layer}.mlp",
    mlp_in=("gpt_neox.layers.{layer}.mlp.dense_h_to_4h",),
    mlp_out="gpt_neox.layers.{layer}.mlp.dense_4h_to_h",
    attention="gpt_neox.layers.{layer}.attention",
    attention_out="gpt_neox.layers.{layer}.attention.dense",
    mlp_norm="gpt_neox.layers.{layer}.post_attention_layernorm",
    final_norm="gpt_neox.final_layer_norm",
    embedding="gpt_neox.embed_in",
    orientation="out_in",
    width="hidden_size",
    depth="num_hidden_layers",
    inner="intermediate_size",
    cache="layer_past",
)
OPT = Anatomy(
    name="opt",
    block="model.decoder.layers.{layer}",
    # Ours (editors/architectures/blocks.py): its layers do without such a module.
    mlp="model.decoder.layers.{layer}.mlp",
    mlp_in=("model.decoder.layers.{layer}.fc1",),
    mlp_out="model.decoder.layers.{layer}.fc2",
    attention="model.decoder.layers.{layer}.self_attn",
    attention_out="model.decoder.layers.{layer}.self_attn.out_proj",
    mlp_norm="model.decoder.layers.{layer}.final_layer_norm",
    final_norm="model.decoder.final_layer_norm",
    embedding="model.decoder.embed_tokens",
    orientation="out_in",
    width="hidden_size",
    depth="num_hidden_layers",
    inner="ffn_dim",
    trunk="model.decoder",
)
FALCON = Anatomy(
    name="falcon",
    block="transformer.h.{layer}",
    mlp="transformer.h.{layer}.mlp",
    mlp_in=("transformer.h.{layer}.mlp.dense_h_to_4h",),
    mlp_out="transformer.h.{layer}.mlp.dense_4h_to_h",
    attention="transformer.h.{layer}.self_attention",
    attention_out="transformer.h.{layer}.self_attention.dense",
    mlp_norm="transformer.h.{layer}.input_layernorm",
    final_norm="transformer.ln_f",
    embedding="transformer.word_embeddings",
    orientation="out_in",
    width="hidden_size",
    depth="num_hidden_layers",
    inner="ffn_hidden_size",
    parallel=True,
    cache="layer_past",
)
LLAMA = Anatomy(
    name="llama",
    block="model.layers.{layer}",
    mlp="model.layers.{layer}.mlp",
    mlp_in=("model.layers.{layer}.mlp.gate_proj", "model.layers.{layer}.mlp.up_proj"),
    mlp_out="model.layers.{layer}.mlp.down_proj",
    attention="model.layers.{layer}.self_attn",
    attention_out="model.layers.{layer}.self_attn.o_proj",
    mlp_norm="model.layers.{layer}.post_attention_layernorm",
    final_norm="model.norm",
    embedding="model.embed_tokens",
    orientation="out_in",
    width="hidden_size",
    depth="num_hidden_layers",
    inner="intermediate_size",
    gated=True,
    biases="mlp_bias",
)
#: Llama's names and blocks, whose feed-forward no configuration gives biases.
LLAMA_LIKE = replace(LLAMA, biases=None)
PHI_3 = replace(LLAMA_LIKE, name="phi3", mlp_in=("model.layers.{layer}.mlp.gate_up_proj",))
OLMO_2 = replace(
    LLAMA_LIKE,
    name="olmo2",
    mlp_norm=None,
    mlp_post_norm="model.layers.{layer}.post_feedforward_layernorm",
    attention_post_norm="model.layers.{layer}.post_attention_layernorm",
)
GEMMA = replace(
    OLMO_2, name="gemma", mlp_norm="model.layers.{layer}.pre_feedforward_layernorm", softcap="final_logit_softcapping"
)


def gpt_neox(config: Any) -> Anatomy:
    """Pythia and GPT-NeoX-20B have parallel blocks; some models of the type do not."""
    return replace(GPT_NEOX, parallel=bool(config.use_parallel_residual))


def opt(config: Any) -> Anatomy:
    """All of OPT but its 350m, which alone norms sums and has embeddings of another width than its blocks."""
    if not config.do_layer_norm_before or config._remove_final_layer_norm:
        raise UnsupportedModel(
            "this OPT norms the sum of residual stream and feed-forward (do_layer_norm_before: false, as opt-350m) or has no "
            "final norm, and no editor here writes behind such a norm; choose another size of OPT"
        )
    return OPT


def falcon(config: Any) -> Anatomy:
    """7B shares one norm, 40B and 180B have one for each half, 11B shares one again."""
    if config.alibi:
        raise UnsupportedModel(
            "this Falcon has alibi positions (falcon-rw), which transformers' eager attention adds twice; choose a Falcon with "
            "rotary positions"
        )
    if config.new_decoder_architecture and config.num_ln_in_parallel_attn in (None, 2):
        return replace(FALCON, mlp_norm="transformer.h.{layer}.ln_mlp")
    if config.new_decoder_architecture or config.parallel_attn:
        return FALCON
    return replace(FALCON, parallel=False, mlp_norm="transformer.h.{layer}.post_attention_layernorm")


#: `config.model_type` to anatomy, or to a function of the configuration where models of the type differ.
ANATOMIES: dict[str, Anatomy | Callable[[Any], Anatomy]] = {
    "gpt2": GPT2,
    "gptj": GPT_J,
    "gpt_neox": gpt_neox,
    "opt": opt,
    "falcon": falcon,
    "llama": LLAMA,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "smollm3": LLAMA,
    "phi3": PHI_3,
    "olmo2": OLMO_2,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
}
_EXPERTS = "a token's feed-forward is that of the experts that its router chooses, and an update of one would hold only there"
#: Types that are near at hand, and why they are not in the table.
REFUSED = {
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "olmoe": _EXPERTS,
    "gpt_oss": _EXPERTS,
    "gemma3": "this is the checkpoint with a vision tower; its language model alone has the type gemma3_text",
}


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """The anatomy of a loaded model.

    Raises:
        UnsupportedModel: its `model_type` has no table, or its configuration is one that no editor fits.
    """
    kind, known = str(model.config.model_type), ", ".join(ANATOMIES)
    if kind in REFUSED:
        raise UnsupportedModel(f"model type {kind!r} is not edited: {REFUSED[kind]}; those that are: {known}")
    if kind not in ANATOMIES:
        raise UnsupportedModel(f"model type {kind!r} has no anatomy (docs/ADDING_A_MODEL.md); those that have one: {known}")
    found = ANATOMIES[kind]
    return found if isinstance(found, Anatomy) else found(model.config)
