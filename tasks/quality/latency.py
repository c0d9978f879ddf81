"""What the patches cost at inference: seconds for a generated token, with them over without them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from editors.model import EditableModel
from warehouse.records import Score

#: Generation of so many tokens after the first words of so many texts, base and edited turn by turn.
PROMPTS, WORDS, TOKENS, TURNS = 16, 8, 16, 5


def latency_ratio(model: EditableModel, texts: Sequence[str]) -> list[Score]:
    """Median over turns, with the range of the turns; nothing where there is no text or no patch.

    The model wears the same patches before and after. Prose goes on where an answer would end, sooner in one model than
    in the other; what is compared is the time of one step.
    """
    prompts, patches = [" ".join(text.split()[:WORDS]) for text in texts[:PROMPTS]], list(model.patches)
    if not prompts or not patches:
        return []
    ratios: list[float] = []
    for _ in range(TURNS):
        # Turn by turn, so that both share the weather.
        model.rollback(0)
        bare = _seconds(model, prompts)
        for patch in patches:
            model.push(patch)
        # What is made once for a set of patches (the ledger's thresholds) is no cost of a token.
        model.generate(prompts[:1], 1)
        ratios.append(_seconds(model, prompts) / bare)
    low, middle, high = np.quantile(ratios, (0.025, 0.5, 0.975))
    return [Score(metric="latency_ratio", value=float(middle), low=float(low), high=float(high), n=len(ratios))]


def _seconds(model: EditableModel, prompts: Sequence[str]) -> float:
    """For each step that the longest continuation took."""
    start = time.perf_counter()
    said = model.generate(prompts, TOKENS)
    seconds = time.perf_counter() - start
    longest = max(len(ids) for ids in model.tokenizer(said)["input_ids"])
    return seconds / min(longest + 1, TOKENS)
