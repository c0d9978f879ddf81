"""transformers as the engine that others are compared with: a folder in a dtype, one prompt at a time, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def answers(folder: Path, prompts: Sequence[str], num_tokens: int, dtype: str = "float32") -> list[str]:
    """What a folder says behind each prompt, special tokens left out."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).input_ids
        said = model.generate(ids, max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
        found.append(tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True))
    return found
