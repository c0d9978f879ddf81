"""Context templates put before a prompt, and rows tokenised with the lookup token found by offsets."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from editors.asking.subjects import naming_places, place_of
from editors.asking.tokens import encode_rows
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

    def places(self, prompt: str, subject: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The character where the subject begins in each filled context: a context may name it too.

        Raises:
            InvalidRequest: the prompt does not name the subject.
        """
        at = place_of(prompt, subject, tokenizer=tokenizer)
        return [template.index("{}") + at for template in self.templates]

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
    """Token ids of `prompt + continuation`: `first` and `lookup` are the subject's ends, `start` begins the continuation.

    `again`: the last tokens of later namings, of a row that was encoded with every naming.
    """

    ids: list[int]
    lookup: int
    start: int
    first: int
    again: tuple[int, ...] = ()


def encode_lookups(
    model: EditableModel,
    prompts: Sequence[str],
    subjects: Sequence[str],
    continuations: Sequence[str],
    *,
    places: Sequence[int] | None = None,
    wordings: Collection[str] = (),
) -> list[LookupRow]:
    """Tokenise rows at once, with the lookup token where the prompt names its subject.

    Rows longer than the model's context lose their left end.

    Args:
        places: the character in each prompt where its subject begins; where not given, `place_of` finds it.
        wordings: templates with `{}` that some of the prompts were made from.

    Raises:
        InvalidRequest: the subject is not in its prompt, or is cut off by the context's length.
    """
    if places is None:
        places = [place_of(p, s, wordings, model.tokenizer) for p, s in zip(prompts, subjects, strict=True)]
    encoded = encode_rows(model.tokenizer, prompts, continuations)
    limit = int(getattr(model.hf.config, "max_position_embeddings", 0)) or 1 << 30
    rows = []
    for prompt, subject, at, row in zip(prompts, subjects, places, encoded, strict=True):
        first, lookup = row.span(at, at + len(subject))
        cut = max(0, len(row.ids) - limit)
        if lookup < cut:
            raise InvalidRequest(
                f"subject {subject!r} lies {len(row.ids) - lookup} tokens before the end of its text, past the model's "
                f"context of {limit}; shorten the prompt {prompt[:60]!r}"
            )
        rows.append(LookupRow(row.ids[cut:], lookup - cut, row.start - cut, max(0, first - cut)))
    return rows


def encode_namings(
    model: EditableModel,
    prompts: Sequence[str],
    subjects: Sequence[str],
    continuations: Sequence[str],
    wordings: Collection[str] = (),
) -> list[LookupRow]:
    """As `encode_lookups`, with the lookup token at each prompt's first naming of its subject and `again` at the others.

    For what acts wherever the subject is named, as a slot does.

    Raises:
        InvalidRequest: as `encode_lookups`.
    """
    named = [naming_places(p, s, wordings, model.tokenizer) for p, s in zip(prompts, subjects, strict=True)]
    owner = [i for i, places in enumerate(named) for _ in places]
    every = encode_lookups(
        model,
        [prompts[i] for i in owner],
        [subjects[i] for i in owner],
        [continuations[i] for i in owner],
        places=[at for places in named for at in places],
    )
    rows: list[LookupRow] = []
    for i, row in zip(owner, every, strict=True):
        if len(rows) == i:
            rows.append(row)
        elif row.lookup != rows[i].lookup:
            rows[i] = replace(rows[i], again=(*rows[i].again, row.lookup))
    return rows


def each_naming(rows: Sequence[LookupRow]) -> list[LookupRow]:
    """A row for every naming of the rows' subjects."""
    return [replace(row, lookup=at, again=()) for row in rows for at in (row.lookup, *row.again)]
