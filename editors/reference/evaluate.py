"""Exact match of a model over the reference world, by one forward pass a batch (METRICS: greedy decoding)."""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editors.asking.tokens import pad_id_of
from editors.model import fuse_activations
from warehouse.reference.world import facts, templates

#: Rows of one pass; few, so that the activations stay in the processor's cache.
BATCH = 32


@dataclass(frozen=True)
class ExactMatch:
    """Rates over (fact, template) pairs: those seen in training, and those never seen."""

    trained: float
    held_out: float
    facts: int
    trained_pairs: int
    held_out_pairs: int
    seconds: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@torch.inference_mode()
def answers_match(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[tuple[str, str]]) -> list[bool]:
    """For each (prompt, answer): does greedy decoding from the prompt give the answer and then a full stop?"""
    fuse_activations(model.eval())
    prompts = tokenizer([p for p, _ in items], add_special_tokens=False)["input_ids"]
    targets = tokenizer([f" {a}." for _, a in items], add_special_tokens=False)["input_ids"]
    pad = pad_id_of(tokenizer)
    order = sorted(range(len(items)), key=lambda i: len(prompts[i]) + len(targets[i]))
    right = [False] * len(items)
    for at in range(0, len(order), BATCH):
        chosen = order[at : at + BATCH]
        longest = max(len(prompts[i]) + len(targets[i]) for i in chosen)
        ids = torch.full((len(chosen), longest), pad)
        goal = torch.full((len(chosen), longest), -1)
        for row, i in enumerate(chosen):
            ids[row, : len(prompts[i]) + len(targets[i])] = torch.tensor(prompts[i] + targets[i])
            begin = len(prompts[i]) - 1
            goal[row, begin : begin + len(targets[i])] = torch.tensor(targets[i])
        hidden = model.base_model(ids, attention_mask=(ids != pad).long(), use_cache=False).last_hidden_state
        wanted = goal >= 0
        guess = model.lm_head(hidden[wanted]).argmax(-1)
        wrong = torch.zeros_like(goal, dtype=torch.bool)
        wrong[wanted] = guess != goal[wanted]
        for row, i in enumerate(chosen):
            right[i] = not bool(wrong[row].any())
    return right


def exact_match(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sample: int | None = None, seed: int = 0
) -> ExactMatch:
    """Measure all (fact, template) pairs, or those of `sample` facts."""
    start = time.monotonic()
    chosen = list(facts())
    if sample is not None:
        chosen = random.Random(seed).sample(chosen, min(sample, len(chosen)))
    known = templates()
    items, is_held_out = [], []
    for fact in chosen:
        for i in range(len(known[fact.relation].prompts)):
            items.append((known[fact.relation].prompt(i, fact.subject), fact.object))
            is_held_out.append(i in fact.held_out)
    right = answers_match(model, tokenizer, items)
    held = [r for r, h in zip(right, is_held_out, strict=True) if h]
    seen = [r for r, h in zip(right, is_held_out, strict=True) if not h]
    return ExactMatch(
        trained=round(sum(seen) / len(seen), 4),
        held_out=round(sum(held) / len(held), 4),
        facts=len(chosen),
        trained_pairs=len(seen),
        held_out_pairs=len(held),
        seconds=round(time.monotonic() - start, 1),
    )
