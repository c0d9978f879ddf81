"""Context templates put before a prompt, and rows tokenised with the lookup token found by offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.errors import InvalidRequest
from editors.model import EditableModel

#: First words of the sampled prefixes, as in MEMIT's public code.
SEED_WORDS = ("The", "Therefore", "Because", "I", "You")


@dataclass(frozen=True)
class Contexts:
    """Templates with `{}` for the prompt and the group that each belongs to; the first is the bare prompt."""

    templates: tuple[str, ...] = ("{}",)
    groups: tuple[int, ...] = (0,)

    def fill(self, prompt: str) -> list[str]:
        # `replace`, not `format`: prompts may hold braces.
        return [template.replace("{}", prompt) for template in self.templates]

    def weights(self, average: str) -> Tensor:
        """(contexts,) weights of sum 1: `flat`, or `grouped` (each group counts once)."""
        if average == "flat":
            return torch.full((len(self.groups),), 1 / len(self.groups))
        sizes = {g: self.groups.count(g) for g in self.groups}
        return torch.tensor([1 / (sizes[g] * len(sizes)) for g in self.groups])


BARE = Contexts()


def sample_contexts(model: EditableModel, groups: Sequence[tuple[int, int]], seed: int) -> Contexts:
    """The bare prompt and, for each (number, tokens), that many continuations of the seed words by the model itself.

    Sampled once with a fixed seed and stored with the preparation; the public code samples anew in every process.
    """
    templates, numbers = ["{}"], [0]
    for number, (count, tokens) in enumerate(groups, start=1):
        words = [SEED_WORDS[i % len(SEED_WORDS)] for i in range(count)]
        texts = model.generate(words, tokens, sample=True, seed=seed + number)
        for word, text in zip(words, texts, strict=True):
            clean = " ".join((word + text).replace("{", " ").replace("}", " ").split())
            templates.append(clean.rstrip(" .") + ". {}")
            numbers.append(number)
    return Contexts(tuple(templates), tuple(numbers))


@dataclass(frozen=True)
class LookupRow:
    """Token ids of `prompt + continuation`: `lookup` ends the subject, `start` begins the continuation."""

    ids: list[int]
    lookup: int
    start: int


def encode_lookups(
    model: EditableModel, prompts: Sequence[str], subjects: Sequence[str], continuations: Sequence[str]
) -> list[LookupRow]:
    """Tokenise rows at once. Where the subject occurs more than once, the last occurrence in the prompt counts.

    Rows longer than the model's context lose their left end.

    Raises:
        InvalidRequest: the subject is not in its prompt, or is cut off by the context's length.
    """
    texts = [p + c for p, c in zip(prompts, continuations, strict=True)]
    encoded = model.tokenizer(texts, return_offsets_mapping=True)
    limit = int(getattr(model.hf.config, "max_position_embeddings", 0)) or 1 << 30
    rows = []
    for prompt, subject, ids, offsets in zip(prompts, subjects, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        at = prompt.rfind(subject)
        if not subject.strip() or at < 0:
            raise InvalidRequest(f"subject {subject!r} is not in the prompt {prompt!r}; a prompt must name its subject")
        end = at + len(subject)
        lookup = max(i for i, (a, b) in enumerate(offsets) if b > a and a < end and b > at)
        start = next((i for i, (a, b) in enumerate(offsets) if b > len(prompt) and b > a), len(ids))
        cut = max(0, len(ids) - limit)
        if lookup < cut:
            raise InvalidRequest(
                f"subject {subject!r} lies {len(ids) - lookup} tokens before the end of its text, past the model's "
                f"context of {limit}; shorten the prompt {prompt[:60]!r}"
            )
        rows.append(LookupRow(list(ids[cut:]), lookup - cut, start - cut))
    return rows
