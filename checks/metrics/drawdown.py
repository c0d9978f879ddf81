"""What the whole model lost: drawdown (DD), perplexity ratio, and KL divergence from `f_0`.

Source: METRICS.md; Mazzia et al., eq. 13.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from checks.intervals import Interval, bootstrap_ratio, cluster_sums, generator_for, wilson
from checks.metrics.outcome import ProbeOutcome, mean_score, measured, of_kind, unmeasured
from warehouse.records import Score

#: exp(700) is just below the largest float64: a model gone that far is reported as a number, not as infinity.
_MAX_LOG_RATIO = 700.0
_PROMPTS_AT_ONCE = 64


def drawdown(outcomes: Sequence[ProbeOutcome], seed: int = 0) -> list[Score]:
    """`1 - sum I(f_N(x)=y) / sum I(f_0(x)=y)` over the test set (eq. 13).

    Slice "" is the equation over all drawdown probes, where newly right answers pay for lost ones; slice `known`
    counts only probes that `f_0` answers rightly, so nothing can be hidden in it. They agree where the set was built
    from what `f_0` knows.
    """
    asked = of_kind(outcomes, "drawdown")
    return [drawdown_of("", asked, seed), drawdown_of("known", [o for o in asked if o.known_before], seed)]


def drawdown_of(slice_name: str, asked: Sequence[ProbeOutcome], seed: int) -> Score:
    """Equation 13 over some of the probes."""
    num_known = sum(o.known_before for o in asked)
    if num_known == 0:
        return unmeasured("DD", slice_name, len(asked))
    edits = [o.cluster for o in asked]
    still, _ = cluster_sums([float(o.after.exact) for o in asked], edits)
    before, _ = cluster_sums([float(o.known_before) for o in asked], edits)
    value = 1.0 - still.sum() / before.sum()
    if all(o.after.exact == o.known_before for o in asked):
        # No answer moved, so no resample would either; Wilson bounds the share that could move unseen.
        unseen = wilson(0, num_known).high
        interval = Interval(0.0 if slice_name == "known" else -unseen, unseen)
    else:
        ratio = bootstrap_ratio(still, before, generator_for(seed, f"DD/{slice_name}"))
        interval = Interval(1.0 - ratio.high, 1.0 - ratio.low)
    return measured("DD", slice_name, float(value), interval, len(asked))


def perplexity_ratio(before: Sequence[tuple[float, int]], after: Sequence[tuple[float, int]], seed: int = 0) -> Score:
    """`ppl(f_N) / ppl(f_0)` over held texts, perplexity being `exp(-sum log p / sum tokens)` over all of them.

    Args:
        before, after: for each text the sum of token log-probabilities in nats and the number of predicted tokens.

    Raises:
        ValueError: the two models were not asked the same texts.
    """
    if len(before) != len(after) or any(a[1] != b[1] for a, b in zip(before, after, strict=True)):
        raise ValueError("perplexity ratio: both models must score the same texts with the same number of tokens")
    tokens = np.array([count for _, count in before], dtype=np.float64)
    lost = np.array([b[0] - a[0] for b, a in zip(before, after, strict=True)], dtype=np.float64)[tokens > 0]
    tokens = tokens[tokens > 0]
    if not len(tokens) or not np.isfinite(lost).all():
        return unmeasured("perplexity_ratio", n=len(tokens))
    log_interval = bootstrap_ratio(lost, tokens, generator_for(seed, "perplexity_ratio"))
    interval = Interval(_bounded_exp(log_interval.low), _bounded_exp(log_interval.high))
    return measured("perplexity_ratio", "", _bounded_exp(lost.sum() / tokens.sum()), interval, len(tokens))


def kl_divergence(before: ArrayLike, after: ArrayLike, seed: int = 0) -> Score:
    """Mean `KL(f_0 || f_N)` of next-token distributions, in nats; `n` counts prompts.

    Args:
        before, after: (prompts, vocab) log-probabilities of the same prompts in the same order.

    Raises:
        ValueError: the two arrays differ in shape.
    """
    first, last = np.asarray(before), np.asarray(after)
    if first.shape != last.shape:
        raise ValueError(f"KL: f_0 gave log-probabilities of shape {first.shape}, the edited model {last.shape}")
    if not len(first):
        return unmeasured("KL")
    starts = range(0, len(first), _PROMPTS_AT_ONCE)
    parts = [_kl_rows(first[i : i + _PROMPTS_AT_ONCE], last[i : i + _PROMPTS_AT_ONCE]) for i in starts]
    return mean_score("KL", "", np.concatenate(parts), seed)


def _kl_rows(before: NDArray[np.floating], after: NDArray[np.floating]) -> NDArray[np.float64]:
    # float64: the terms cancel almost wholly where the models agree.
    log_p, log_q = before.astype(np.float64), after.astype(np.float64)
    with np.errstate(invalid="ignore"):
        terms = np.exp(log_p) * (log_p - log_q)
    # A token that f_0 never says adds nothing: p log p -> 0 as p -> 0.
    return np.where(np.isneginf(log_p), 0.0, terms).sum(axis=1)


def _bounded_exp(exponent: float) -> float:
    return math.exp(min(_MAX_LOG_RATIO, max(-_MAX_LOG_RATIO, float(exponent))))
