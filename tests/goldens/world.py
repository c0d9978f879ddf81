"""The tiny fixed GPT-2, its vocabulary, and the texts and requests of the goldens: plain data, no tensor library.

Weights come from NumPy's generator, whose stream is one and the same on every machine (torch's normal numbers differ
between instruction sets), and are rounded to float32 so that both sides read equal numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
#: Parameters as GPT-2 names them, without `transformer.`; projections as stored, (d_in, d_out).
Weights = dict[str, Array]

D_MODEL, D_MLP, DEPTH, HEADS, POSITIONS = 16, 48, 3, 2, 96
END, PAD = "<|endoftext|>", "<|pad|>"
#: Byte pairs that the tokeniser joins, first ones first; a blank is written `_` here.
JOINED = """
_|b o|r or|n _b|orn i|n _|in _|i _i|s s|t t|h th|e _|the _|o _o|f a|r p|ar _|P _P|ar i|s _Par|is e|r l|a _|L la|c e|s L|o _L|o
o|n d|on _Lo|n _|c _c|a o|v
"""
MERGES = tuple((left, right) for left, _, right in (pair.replace("_", " ").partition("|") for pair in JOINED.split()))
#: Characters of the vocabulary: printable ASCII, the blank first, without the underscore.
LETTERS = "".join(map(chr, range(32, 127))).replace("_", "")
VOCABULARY = (END, PAD, *LETTERS, *("".join(pair) for pair in MERGES))

TEXTS = (
    "Ada Lovelace was born in London. The mother of Ada Lovelace is Anne Isabella Byron.",
    "Grace Hopper was born in New York. Alan Turing was born in Maida Vale and died in Wilmslow.",
    "The capital of France is Paris, and the capital of Japan is Tokyo.",
    "A small boat went up the river in the evening, because the wind was good.",
)
#: The bare prompt, and two prefixes as they would be sampled; the numbers are the groups of MEMIT's average.
CONTEXTS = ("{}", "The river is the. {}", "Because of Paris. {}")
GROUPS = (0, 1, 1)


@dataclass(frozen=True)
class Fact:
    """`prompt` names `subject`; the edit asks for `target` behind it."""

    subject: str
    prompt: str
    target: str


ADA = Fact("Ada Lovelace", "Ada Lovelace was born in", "Paris")
GRACE = Fact("Grace Hopper", "Grace Hopper was born in", "Tokyo")
FRANCE = Fact("France", "The capital of France is", "London")
#: The subject twice in its prompt, first within a longer word, and a target of two words.
TURING = Fact("Turing", "In Turing's town Turing was born in", "New York")
FACTS = (ADA, GRACE, FRANCE, TURING)


def weights() -> Weights:
    """All parameters of the tiny model, float64 holding float32 values."""
    draw = np.random.default_rng(20)

    def normal(*shape: int, size: float = 0.4) -> Array:
        return (size * draw.standard_normal(shape)).astype(np.float32).astype(np.float64)

    found: Weights = {"wte.weight": normal(len(VOCABULARY), D_MODEL), "wpe.weight": normal(POSITIONS, D_MODEL, size=0.1)}
    for i in range(DEPTH):
        for norm in ("ln_1", "ln_2"):
            found |= {f"h.{i}.{norm}.weight": 1 + normal(D_MODEL, size=0.1), f"h.{i}.{norm}.bias": normal(D_MODEL, size=0.1)}
        for path, d_in, d_out in (
            ("attn.c_attn", D_MODEL, 3 * D_MODEL), ("attn.c_proj", D_MODEL, D_MODEL),
            ("mlp.c_fc", D_MODEL, D_MLP), ("mlp.c_proj", D_MLP, D_MODEL),
        ):  # fmt: skip
            found |= {f"h.{i}.{path}.weight": normal(d_in, d_out), f"h.{i}.{path}.bias": normal(d_out, size=0.05)}
    found |= {"ln_f.weight": 1 + normal(D_MODEL, size=0.1), "ln_f.bias": normal(D_MODEL, size=0.1)}
    return {name: value.astype(np.float32).astype(np.float64) for name, value in found.items()}


def seeded(seed: int, *shape: int, size: float = 1.0) -> Array:
    """Further random numbers (a net's matrices, an adapter's start), float64 holding float32 values."""
    return (size * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32).astype(np.float64)


#: Of the value optimisation; both sides are given these numbers.
VALUES: dict[str, Any] = {"value_steps": 8, "value_lr": 1.0, "value_decay": 0.5, "kl_weight": 0.0625, "stop_loss": 0.05}
ROME: dict[str, Any] = {**VALUES, "layer": 1, "clamp_norm": 3.0, "second_moment_ridge": 0.01}
#: Its `stop_loss` lets one of the four values stop at the third step.
MEMIT: dict[str, Any] = {
    **VALUES, "layers": (0, 1), "clamp_norm": 0.75, "stop_loss": 4.265,
    "second_moment_ridge": 0.01, "second_moment_weight": 5.0,
}  # fmt: skip
PMET: dict[str, Any] = {**MEMIT, "stop_loss": 0.05, "second_moment_weight": 3.0}
ALPHAEDIT: dict[str, Any] = {**VALUES, "layers": (0, 1), "clamp_norm": 0.75, "l2": 2.0, "null_share": 0.1}
#: In sequence, so that every rule of the codebook fires.
GRACE_FACTS = (
    Fact("Grace Hopper", "Grace Hopper was born in", "Par"),
    FRANCE,
    Fact("Grace Hopper", "Grace Hopper has born in", "Par"),
    ADA,
    Fact("Ada Lovelace", "Ada Lovelace has born in", "London"),
    Fact("Ada Lovelace", "Ada Lovelace has born in", "New York"),
    FRANCE,
)
GRACE_NUMBERS: dict[str, Any] = {"layer": 1, "radius_share": 0.5, "distance": 2.0, "output_size": 4.0, "learning_rate": 0.3,
                                 "num_steps": 40, "stop_margin": 1.0}  # fmt: skip
LORA: dict[str, Any] = {"layers": (1, 2), "sites": ("mlp_out", "attention_in"), "rank": 2, "alpha": 4.0, "learning_rate": 0.02,
                        "num_steps": 6, "stop_loss": 0.0}  # fmt: skip
LORA_PATHS = ("h.1.attn.c_attn", "h.1.mlp.c_proj", "h.2.attn.c_attn", "h.2.mlp.c_proj")
MEND_PATHS = ("h.1.mlp.c_fc", "h.1.mlp.c_proj", "h.2.mlp.c_fc", "h.2.mlp.c_proj")
MEND_RANK = 5


def lora_start() -> dict[str, Array]:
    """The adapters' random halves, (rank, d_in)."""
    widths = {"mlp.c_proj": D_MLP, "attn.c_attn": D_MODEL}
    return {
        path: seeded(40 + number, LORA["rank"], widths[path.split(".", 2)[2]], size=0.2)
        for number, path in enumerate(LORA_PATHS)
    }


def mend_net() -> dict[str, Array]:
    """Nets that have learnt something: every part of them away from where a fresh one stands."""
    width, net = D_MODEL + D_MLP, {}
    for number, shape in enumerate((f"{D_MLP}x{D_MODEL}", f"{D_MODEL}x{D_MLP}")):
        for i in range(2):
            net[f"{shape} {i} down"] = seeded(50 + 4 * number + i, MEND_RANK, width, size=0.1)
            net[f"{shape} {i} up"] = seeded(52 + 4 * number + i, width, MEND_RANK, size=0.1)
    for number, path in enumerate(MEND_PATHS):
        draw = 70 + 10 * number
        net[f"{path} mean"], net[f"{path} std"] = seeded(draw, width, size=0.05), 0.2 + abs(seeded(draw + 1, width, size=0.1))
        net[f"{path} step"] = np.array(0.002 * (number + 1))
        for i in range(2):
            net[f"{path} {i} scale"] = 1 + seeded(draw + 2 + i, width, size=0.2)
            net[f"{path} {i} shift"] = seeded(draw + 4 + i, width, size=0.1)
    return net
