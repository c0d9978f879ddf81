"""A tiny random model of every architecture in editors/architectures/anatomies.py, from its real configuration class."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from editors.architectures.anatomies import anatomy_of
from editors.base import Editor
from editors.direct.hosting import HostedConfig
from editors.model import EditableModel
from editors.presets import load_editor
from tests.support import tiny_model, tiny_tokenizer

WIDTH: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128,
    "initializer_range": 0.1,
}  # fmt: skip
NEOX: dict[str, Any] = {**WIDTH, "intermediate_size": 96}
LLAMA: dict[str, Any] = {**NEOX, "num_key_value_heads": 2}
#: Prompts are longer than this window, so that a mask without it shows.
WINDOW = {"sliding_window": 6}
GEMMA: dict[str, Any] = {
    **LLAMA, **WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 6.0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
FALCON: dict[str, Any] = {**WIDTH, "ffn_hidden_size": 96}
NEW_FALCON: dict[str, Any] = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
#: name -> (class of the model without `ForCausalLM`, its configuration's own entries).
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gptj": ("GPTJ", {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 96, "n_positions": 128, "rotary_dim": 4,
                      "initializer_range": 0.1}),
    "gpt_neox": ("GPTNeoX", NEOX),
    "gpt_neox-sequential": ("GPTNeoX", {**NEOX, "use_parallel_residual": False}),
    "opt": ("OPT", {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "ffn_dim": 96,
                    "max_position_embeddings": 128, "word_embed_proj_dim": 32, "init_std": 0.1}),
    "falcon": ("Falcon", FALCON),
    "falcon-two-norms": ("Falcon", NEW_FALCON),
    "falcon-one-norm": ("Falcon", {**NEW_FALCON, "num_ln_in_parallel_attn": 1}),
    "mistral": ("Mistral", {**LLAMA, **WINDOW}),
    "qwen2": ("Qwen2", LLAMA),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 8}),
    "smollm3": ("SmolLM3", {**LLAMA, "no_rope_layer_interval": 2}),
    "phi3": ("Phi3", {**LLAMA, **WINDOW}),
    "olmo2": ("Olmo2", LLAMA),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 8.0}),
    "gemma3_text": ("Gemma3", GEMMA),
}  # fmt: skip


def plain_model(name: str, **entries: Any) -> transformers.PreTrainedModel:
    """transformers' own model; `entries` over those of `SHAPES`."""
    cls, own = SHAPES[name]
    tokens = {"vocab_size": len(tiny_tokenizer()), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = getattr(transformers, f"{cls}TextConfig" if cls == "Gemma3" else f"{cls}Config")(**{**own, **tokens, **entries})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, f"{cls}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                # Norms of ones and biases of zeros would hide which of them a state went through.
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


#: Added to one entry of every embedding; behind a norm it is what all tokens of a pretrained model share.
SHARED = 2.0


def steady_model(name: str, dtype: torch.dtype = torch.float32, **entries: Any) -> EditableModel:
    """A tiny model whose gated feed-forwards read a nearly constant direction, as those of trained models do.

    Args:
        name: one of `SHAPES`, `gpt2` or `llama`.
        entries: of the configuration, over those of `SHAPES`.
    """
    hf: Any = plain_model(name, **entries) if name in SHAPES else tiny_model(name).hf
    if anatomy_of(hf).gated:
        with torch.no_grad():
            hf.get_input_embeddings().weight[:, 0] += SHARED
    return EditableModel(hf.to(dtype), tiny_tokenizer(), name=f"steady-{name}")


def model_of(name: str, **entries: Any) -> EditableModel:
    return EditableModel(plain_model(name, **entries), tiny_tokenizer(), name=f"tiny-{name}")


def tiny_editor(name: str) -> Editor:
    """An editor with the numbers of the tiny Llama, its host's too, whatever the architecture: presets need no section."""
    llama = tiny_model("llama")
    made = load_editor(name, llama)
    if isinstance(made.config, HostedConfig):
        numbers = load_editor(made.config.host, llama).config.model_dump(exclude={"seed"})
        return load_editor(name, llama, {"host_overrides": numbers})
    return made
