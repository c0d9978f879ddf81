"""Texts as tokens: prompts as generation reads them, continuations that stand behind them, and the text of what is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from editors.asking.joining import joined

TOKENIZER_CONFIG = "tokenizer_config.json"
#: Its entry that says how it was loaded.
FROM_ENVIRONMENT = "local_files_only"
#: What a continuation is encoded behind where its own tokens grow together with the prompt's.
ANCHORS = ("\n", ".", ":", "a", "1", "(", "。", " ")
#: Tokens of a prompt that are decoded with a continuation: decoders drop the space before a text's first word.
DECODED_BEFORE = 8


@dataclass(frozen=True)
class EncodedRow:
    """One tokenised `prompt + continuation`: the continuation begins at token `start`.

    Attributes:
        offsets: (first, behind the last) character in the prompt, of each of its tokens.
    """

    ids: list[int]
    start: int
    offsets: list[tuple[int, int]]

    def span(self, first: int, end: int) -> tuple[int, int]:
        """(first, last) token of the prompt that holds a character of `first` to `end`."""
        held = [i for i, (a, b) in enumerate(self.offsets) if b > a and a < end and b > first]
        return held[0], held[-1]


def continuation_of(target: str) -> str:
    """The target as text behind a prompt: exactly one leading space.

    `encode_rows` leaves the space out behind a prompt that has none there (`editors.asking.joining`).
    """
    return " " + target.strip()


def asking_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that puts nothing behind a text: itself, or a copy without the end token that it would append.

    Behind an appended end token a model is asked about another text. What stands before a text (the start token) stays.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not _specials_behind(tokenizer):
        return tokenizer
    state = json.loads(backend.to_str())
    state["post_processor"] = _without_ends(state["post_processor"])
    copy: Any = deepcopy(tokenizer)
    copy.backend_tokenizer.post_processor = Tokenizer.from_str(json.dumps(state)).post_processor
    return copy


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer as it came with the model, with no trace of how this process happened to load it.

    transformers notes `local_files_only`, which follows from the environment (HF_HUB_OFFLINE): with it a checkpoint would
    have other bytes on another machine.
    """
    tokenizer.save_pretrained(folder)
    path = folder / TOKENIZER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.pop(FROM_ENVIRONMENT, None) is not None:
        path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _specials_behind(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens the tokenizer puts behind a text."""
    mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return len(mask) - max((i + 1 for i, special in enumerate(mask) if not special), default=len(mask))


def _without_ends(processor: dict[str, Any]) -> dict[str, Any] | None:
    """A post-processor without the special tokens behind a text; those before it stay."""
    if processor["type"] == "Sequence":
        kept = [_without_ends(inner) for inner in processor["processors"]]
        return {**processor, "processors": [inner for inner in kept if inner is not None]}
    if processor["type"] == "TemplateProcessing":
        single = processor["single"]
        behind = next(i for i, part in enumerate(single) if "Sequence" in part) + 1
        return {**processor, "single": single[:behind], "pair": [*single[:behind], {"Sequence": {"id": "B", "type_id": 1}}]}
    if processor["type"] in {"BertProcessing", "RobertaProcessing"}:
        token, number = processor["cls"]
        sequence = {"Sequence": {"id": "A", "type_id": 0}}
        single = [{"SpecialToken": {"id": token, "type_id": 0}}, sequence]
        return {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
        }
    return processor


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Tokens of each prompt, as generation reads it: with the tokenizer's start, without any end.

    An empty prompt is the beginning-of-text token alone.
    """
    return [ids for ids, _ in _encode(tokenizer, prompts)]


def encode_rows(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], continuations: Sequence[str]) -> list[EncodedRow]:
    """Tokenise each prompt with its continuation.

    A row begins with the very tokens that generation reads for its prompt. Where the text as a whole has other tokens (no
    space between the two, a prompt that ends in one), the continuation gets those that spell it behind the prompt's.
    """
    asked = _encode(tokenizer, prompts)
    texts = [prompt + joined(prompt, continuation) for prompt, continuation in zip(prompts, continuations, strict=True)]
    rows = []
    for prompt, text, (head, offsets), (whole, places) in zip(prompts, texts, asked, _encode(tokenizer, texts), strict=True):
        if whole[: len(head)] == head:
            rows.append(EncodedRow(whole, len(head), offsets))
            continue
        behind = _behind(tokenizer, head, text[len(prompt) :], whole)
        if behind is not None:
            rows.append(EncodedRow([*head, *behind], len(head), offsets))
        elif not prompt:
            rows.append(EncodedRow([*head, *whole], len(head), offsets))
        else:
            # No tokens spell the continuation behind this prompt alone; the split of the whole text is the nearest.
            start = next((i for i, (_, b) in enumerate(places) if b > len(prompt)), len(whole))
            rows.append(EncodedRow(whole, start, places[:start]))
    return rows


def _behind(tokenizer: PreTrainedTokenizerBase, head: list[int], continuation: str, whole: list[int]) -> list[int] | None:
    """Tokens that spell a continuation behind the tokens `head`: encoded behind an anchor, from where the anchor ends."""
    text = _decoded(tokenizer, whole)
    anchors = _encode(tokenizer, ANCHORS)
    longer = _encode(tokenizer, [anchor + continuation for anchor in ANCHORS])
    for (short, _), (ids, _) in zip(anchors, longer, strict=True):
        found = ids[len(short) :]
        if ids[: len(short)] == short and _decoded(tokenizer, [*head, *found]) == text:
            return found
    return None


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """(ids, offsets) of each text; never empty."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), return_offsets_mapping=True)
    behind = _specials_behind(tokenizer)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = []
    for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        kept = len(ids) - behind
        rows.append((list(ids[:kept]), [tuple(o) for o in offsets[:kept]]) if kept else ([begin], [(0, 0)]))
    return rows


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def said_text(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """The text of tokens said behind a prompt, its leading space included; special tokens removed."""
    before = list(prompt_ids)[-DECODED_BEFORE:]
    head, whole = _decoded(tokenizer, before), _decoded(tokenizer, [*before, *ids])
    return whole[len(head) :] if whole.startswith(head) else _decoded(tokenizer, ids)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(rows, tokens) ids and attention mask; padding stands on the right."""
    longest = max(len(r) for r in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0
