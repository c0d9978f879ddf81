"""GPT-2 in NumPy and float64, one row at a time: forward pass, backward pass, and Adam.

Radford et al. 2019: pre-norm blocks, learnt positions, the tanh form of GELU, the head tied to the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.goldens.world import DEPTH, HEADS, Array, Weights

NORM_EPSILON = 1e-5
GELU_SCALE, GELU_CUBE = np.sqrt(2 / np.pi), 0.044715


@dataclass
class Pass:
    """One row's way through the model.

    Attributes:
        inputs: what each projection reads, (tokens, d_in), and each block, by name.
        outputs: what each projection and each block writes, (tokens, d_out).
        logits: (tokens, vocab).
        kept: intermediate values that the backward pass needs.
    """

    logits: Array
    inputs: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """Add `delta` (d_model,) to the output of block `layer` at one token.

    Every block adds its feed-forward's output to the stream, so this is a change of that output as well. `attention` is
    added to the output of the block's attention, which the feed-forward then reads.
    """

    layer: int
    token: int
    delta: Array
    attention: Array | None = None


def forward(w: Weights, ids: list[int], change: Change | None = None) -> Pass:
    """Logits and everything on the way to them."""
    seen = Pass(np.empty(0))
    x = w["wte.weight"][ids] + w["wpe.weight"][: len(ids)]
    for i in range(DEPTH):
        block = f"h.{i}"
        seen.inputs[block] = x
        mixed = _attention(w, seen, block, _norm(w, seen, f"{block}.ln_1", x))
        middle = x + mixed
        if change is not None and change.layer == i and change.attention is not None:
            middle[change.token] += change.attention
        before = _linear(w, seen, f"{block}.mlp.c_fc", _norm(w, seen, f"{block}.ln_2", middle))
        x = middle + _linear(w, seen, f"{block}.mlp.c_proj", _gelu(before))
        if change is not None and change.layer == i:
            x = x.copy()
            x[change.token] += change.delta
        seen.outputs[block] = x
    seen.logits = _norm(w, seen, "ln_f", x) @ w["wte.weight"].T
    return seen


def backward(w: Weights, seen: Pass, logits: Array) -> dict[str, Array]:
    """From the loss's gradient at the logits to that at the output of every projection and block, (tokens, d_out) by name."""
    found: dict[str, Array] = {}
    x = _norm_back(w, seen, "ln_f", logits @ w["wte.weight"])
    for i in reversed(range(DEPTH)):
        block = f"h.{i}"
        found[block] = found[f"{block}.mlp.c_proj"] = x
        before = (x @ w[f"{block}.mlp.c_proj.weight"].T) * _gelu_slope(seen.outputs[f"{block}.mlp.c_fc"])
        found[f"{block}.mlp.c_fc"] = before
        x = x + _norm_back(w, seen, f"{block}.ln_2", before @ w[f"{block}.mlp.c_fc.weight"].T)
        found[f"{block}.attn.c_proj"] = x
        found[f"{block}.attn.c_attn"] = joint = _attention_back(w, seen, block, x)
        x = x + _norm_back(w, seen, f"{block}.ln_1", joint @ w[f"{block}.attn.c_attn.weight"].T)
    return found


def log_softmax(logits: Array) -> Array:
    top = logits - logits.max(-1, keepdims=True)
    return top - np.log(np.exp(top).sum(-1, keepdims=True))


class Adam:
    """Kingma and Ba 2015, algorithm 1, on one array."""

    def __init__(self, rate: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> None:
        self.rate, self.beta1, self.beta2, self.epsilon = rate, beta1, beta2, epsilon
        self.step, self.first, self.second = 0, 0.0, 0.0

    def move(self, gradient: Array) -> Array:
        """What to add to the array."""
        self.step += 1
        self.first = self.beta1 * self.first + (1 - self.beta1) * gradient
        self.second = self.beta2 * self.second + (1 - self.beta2) * gradient**2
        mean, square = self.first / (1 - self.beta1**self.step), self.second / (1 - self.beta2**self.step)
        return -self.rate * mean / (np.sqrt(square) + self.epsilon)


def _linear(w: Weights, seen: Pass, name: str, x: Array) -> Array:
    seen.inputs[name] = x
    seen.outputs[name] = x @ w[f"{name}.weight"] + w[f"{name}.bias"]
    return seen.outputs[name]


def _norm(w: Weights, seen: Pass, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + NORM_EPSILON)
    seen.kept[name] = centred * scale, scale
    return centred * scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def _norm_back(w: Weights, seen: Pass, name: str, gradient: Array) -> Array:
    normed, scale = seen.kept[name]
    g = gradient * w[f"{name}.weight"]
    return scale * (g - g.mean(-1, keepdims=True) - normed * (g * normed).mean(-1, keepdims=True))


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(GELU_SCALE * (x + GELU_CUBE * x**3)))


def _gelu_slope(x: Array) -> Array:
    t = np.tanh(GELU_SCALE * (x + GELU_CUBE * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * GELU_SCALE * (1 + 3 * GELU_CUBE * x**2)


def _heads(x: Array) -> Array:
    """(tokens, d_model) to (heads, tokens, width)."""
    return x.reshape(len(x), HEADS, -1).transpose(1, 0, 2)


def _whole(x: Array) -> Array:
    """And back."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def _attention(w: Weights, seen: Pass, block: str, x: Array) -> Array:
    q, k, v = (_heads(part) for part in np.split(_linear(w, seen, f"{block}.attn.c_attn", x), 3, axis=1))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones(scores.shape[-2:], dtype=bool)), scores, -np.inf)
    shares = np.exp(log_softmax(scores))
    seen.kept[block] = q, k, v, shares
    return _linear(w, seen, f"{block}.attn.c_proj", _whole(shares @ v))


def _attention_back(w: Weights, seen: Pass, block: str, gradient: Array) -> Array:
    """From the gradient at the attention's output to that at queries, keys and values, side by side."""
    q, k, v, shares = seen.kept[block]
    g = _heads(gradient @ w[f"{block}.attn.c_proj.weight"].T)
    at_shares = g @ v.transpose(0, 2, 1)
    scores = shares * (at_shares - (at_shares * shares).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    parts = scores @ k, scores.transpose(0, 2, 1) @ q, shares.transpose(0, 2, 1) @ g
    return np.concatenate([_whole(part) for part in parts], axis=1)
