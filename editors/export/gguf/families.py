"""Which classes of models a `.gguf` can hold, and what their configurations are called in its header.

Layout and names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What llama.cpp assumes of an architecture without
reading it from the header (its activation, how often a layer looks only back through a window, what attention is divided by)
is checked here: a model that differs would be another model there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from editors.errors import UnsupportedModel

SILU, TANH_GELU = ("silu", "swish"), ("gelu_new", "gelu_pytorch_tanh")
SLIDING, FULL = "sliding_attention", "full_attention"
#: Layers of the two Gemma sizes whose attention llama.cpp divides by sqrt(width / heads) instead of sqrt(head_dim).
DIVIDED_BY_WIDTH = {MODEL_ARCH.GEMMA2: 46, MODEL_ARCH.GEMMA3: 62}
#: What YaRN takes where a configuration is silent, in transformers and in llama.cpp.
YARN = {"beta_fast": 32, "beta_slow": 1, "mscale": None, "mscale_all_dim": None, "attention_factor": None, "truncate": True}


@dataclass(frozen=True)
class Family:
    """One class of models, as llama.cpp runs it.

    Attributes:
        activations: names of the one activation that its feed-forward has there.
        biases: last parts of the modules' names that have room for a bias there.
        interleaved: rotated coordinates stand in pairs there, in transformers in two halves.
        shifted_norms: norms are stored as what is added to 1 in transformers, as a whole there.
        windows: layers that see only the last few tokens are known there.
    """

    arch: MODEL_ARCH
    activations: tuple[str, ...] = SILU
    biases: tuple[str, ...] = ()
    interleaved: bool = False
    shifted_norms: bool = False
    windows: bool = False

    @property
    def name(self) -> str:
        return MODEL_ARCH_NAMES[self.arch]


LLAMA = Family(
    MODEL_ARCH.LLAMA,
    biases=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    interleaved=True,
)
#: class of the model -> family.
FAMILIES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": Family(MODEL_ARCH.QWEN2, biases=("q_proj", "k_proj", "v_proj")),
    "Qwen3ForCausalLM": Family(MODEL_ARCH.QWEN3),
    "Gemma2ForCausalLM": Family(MODEL_ARCH.GEMMA2, TANH_GELU, shifted_norms=True, windows=True),
    "Gemma3ForCausalLM": Family(MODEL_ARCH.GEMMA3, TANH_GELU, shifted_norms=True, windows=True),
    "Phi3ForCausalLM": Family(MODEL_ARCH.PHI3),
    "GPT2LMHeadModel": Family(
        MODEL_ARCH.GPT2, TANH_GELU, biases=("ln_1", "ln_2", "ln_f", "c_attn", "c_proj", "c_fc")
    ),
}  # fmt: skip


def family_of(config: Any) -> Family:
    """The family of a configuration.

    Raises:
        UnsupportedModel: llama.cpp has no such architecture, or this model differs from what it takes for granted.
    """
    cls = (config.architectures or ["a class without a name"])[0]
    family = FAMILIES.get(cls)
    if family is None:
        raise UnsupportedModel(
            f"no .gguf is written of {cls}; it is of {', '.join(FAMILIES)}. Export with --format hf, and convert the "
            "folder with llama.cpp's own converter where that knows the class"
        )
    for entry, found, wanted in _assumed(family, config):
        if found not in wanted:
            raise UnsupportedModel(
                f"the config.json of this {cls} has {entry} = {found!r}, and llama.cpp computes every {family.name} with "
                f"{' or '.join(repr(w) for w in wanted)}: the file would be another model; export with --format hf"
            )
    return family


def describe(writer: GGUFWriter, family: Family, config: Any) -> None:
    """Write a configuration's numbers into the header.

    Raises:
        UnsupportedModel: positions are scaled in a way that a header does not say.
    """
    heads, head = config.num_attention_heads, head_width(config)
    writer.add_context_length(context_length(family, config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(inner_width(config))
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    if family.arch == MODEL_ARCH.GPT2:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head)
    writer.add_value_length(head)
    if family.windows:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(window_period(config))
    if family.arch == MODEL_ARCH.GEMMA2:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    _describe_positions(writer, config, head)


def context_length(family: Family, config: Any) -> int:
    """Tokens that the model can be given: where llama.cpp has no windows, as many as its smallest window holds.

    Within a window full attention sees the same tokens.
    """
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    slides = bool(window) and (layers is None or SLIDING in layers)
    return min(config.max_position_embeddings, window) if slides and not family.windows else config.max_position_embeddings


def head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def inner_width(config: Any) -> int:
    """Width of the feed-forward, as the folder says: slots and neurons widen it."""
    if config.model_type == "gpt2":
        return config.n_inner or 4 * config.n_embd
    return config.intermediate_size


def window_period(config: Any) -> int:
    """Every how many layers one sees the whole text; the others before it see a window.

    Raises:
        UnsupportedModel: no such number describes the layers.
    """
    layers: Sequence[str] = config.layer_types
    period = layers.index(FULL) + 1 if FULL in layers else 0
    if period < 2 or any((kind == FULL) != (i % period == period - 1) for i, kind in enumerate(layers)):
        raise UnsupportedModel(
            f"layer_types in config.json are {', '.join(layers)}; llama.cpp knows only Gemmas in which every n-th layer sees "
            "the whole text and the others a window; export with --format hf"
        )
    return period


def rope_factors(config: Any) -> list[float] | None:
    """What the rotation of each pair of coordinates is divided by, (head_dim / 2,), where the header has no words for it."""
    rope = _positions(config)
    if rope.get("rope_type", "default") != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    width = head_width(config)
    return [rope["rope_theta"] ** (-2 * i / width) / float(frequency) for i, frequency in enumerate(scaled)]


def _assumed(family: Family, config: Any) -> list[tuple[str, Any, tuple[Any, ...]]]:
    """(entry of config.json, what it says, what llama.cpp computes with)."""
    activation = next(
        (getattr(config, key) for key in ("hidden_activation", "activation_function", "hidden_act") if hasattr(config, key)),
        None,
    )
    found: list[tuple[str, Any, tuple[Any, ...]]] = [("its activation", activation, family.activations)]
    if family.arch == MODEL_ARCH.GPT2:
        found += [
            ("scale_attn_weights", config.scale_attn_weights, (True,)),
            ("scale_attn_by_inverse_layer_idx", config.scale_attn_by_inverse_layer_idx, (False,)),
            ("tie_word_embeddings", config.tie_word_embeddings, (True,)),
        ]
    if family.windows:
        by_width = config.num_hidden_layers == DIVIDED_BY_WIDTH[family.arch]
        divisor = config.hidden_size // config.num_attention_heads if by_width else head_width(config)
        found += [
            ("query_pre_attn_scalar", config.query_pre_attn_scalar, (divisor,)),
            ("tie_word_embeddings", config.tie_word_embeddings, (True,)),
        ]
    if family.arch == MODEL_ARCH.GEMMA3:
        found += [(key, getattr(config, key, None), (None,)) for key in ("attn_logit_softcapping", "final_logit_softcapping")]
        found.append(("use_bidirectional_attention", getattr(config, "use_bidirectional_attention", False), (False, None)))
    return found


def _positions(config: Any) -> dict[str, Any]:
    """How positions turn the coordinates, in layers that see the whole text."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get(FULL, rope)


def _describe_positions(writer: GGUFWriter, config: Any, head: int) -> None:
    rope = _positions(config)
    share = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None)) or 1.0
    if share != 1.0 and config.model_type != "phi3":
        raise UnsupportedModel(
            f"partial_rotary_factor is {share} in the config.json of this {config.model_type}; llama.cpp turns all "
            "coordinates there; export with --format hf"
        )
    writer.add_rope_dimension_count(int(share * head))
    writer.add_rope_freq_base(rope["rope_theta"])
    _describe_scaling(writer, rope, "")
    windowed = config.rope_parameters.get(SLIDING)
    if windowed is not None:
        if windowed.get("rope_type", "default") != "default":
            raise _scaled_otherwise(windowed, "in layers with a window ")
        writer.add_rope_freq_base_swa(windowed["rope_theta"])


def _describe_scaling(writer: GGUFWriter, rope: dict[str, Any], where: str) -> None:
    match rope.get("rope_type", "default"):
        case "default" | "llama3":
            # Of llama3 a tensor says it: `rope_factors`.
            return
        case "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        case "yarn" if all(rope.get(key, usual) in (usual, None) for key, usual in YARN.items()):
            writer.add_rope_scaling_type(RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rope["factor"])
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        case _:
            raise _scaled_otherwise(rope, where)


def _scaled_otherwise(rope: dict[str, Any], where: str) -> UnsupportedModel:
    entries = ", ".join(f"{key} {value}" for key, value in rope.items() if not isinstance(value, list))
    return UnsupportedModel(
        f"positions are scaled {where}as no .gguf is written here ({entries}); linear, llama3 and yarn with its usual numbers "
        "are; export with --format hf"
    )
