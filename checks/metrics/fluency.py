"""Does the model still write: weighted bi-gram and tri-gram entropies of its continuations, in bits.

Source: METRICS.md; Zhang et al. 2018; ROME appendix. Reference code: kmeng01/rome
`experiments/py/eval_utils_counterfact.py`, commit 59b466e, `n_gram_entropy`, whose weights 2/3 and 4/3 before a mean of
two are our 1/3 and 2/3. We split words by a regular expression where ROME calls nltk's tokenizer, so that nothing has
to be downloaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from checks.metrics.outcome import mean_score
from warehouse.records import Score

WEIGHTS = {2: 1 / 3, 3: 2 / 3}
_WORD = re.compile(r"\w+|[^\w\s]")


def n_gram_entropy(text: str) -> float:
    """Weighted mean of bi-gram and tri-gram entropy of one text, in bits; 0 where it is too short to have any."""
    words = _WORD.findall(text)
    return sum(weight * _entropy(words, size) for size, weight in WEIGHTS.items())


def fluency(before: Sequence[str], after: Sequence[str], seed: int = 0) -> list[Score]:
    """Mean entropy of the edited model's continuations, that of `f_0`, and the mean change (after - before).

    The change is paired by prompt: the entropy of a text depends on its length and vocabulary, so the plain number
    compares only within one model and one setting.
    """
    if len(before) != len(after):
        raise ValueError(f"fluency: {len(before)} continuations of f_0 but {len(after)} of the edited model")
    first = np.array([n_gram_entropy(text) for text in before])
    last = np.array([n_gram_entropy(text) for text in after])
    return [
        mean_score("fluency", "", last, seed),
        mean_score("fluency", "before", first, seed),
        mean_score("fluency", "change", last - first, seed),
    ]


def _entropy(words: Sequence[str], size: int) -> float:
    counts = np.array(list(Counter(zip(*(words[i:] for i in range(size)), strict=False)).values()), dtype=np.float64)
    if not len(counts):
        return 0.0
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0
