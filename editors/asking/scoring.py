"""Exact match under greedy decoding from one teacher-forced pass (METRICS: the indicator of every rate)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from editors.asking.calls import Call, Generation, Runner
from editors.asking.tokens import encode_prompts, said_text
from warehouse.questions import Answer, ends_answer

#: Tokens read behind an answer whose next token alone does not tell whether it goes on: a space and four bytes of a character.
TOKENS_BEHIND = 6


def stop_tokens(tokenizer: PreTrainedTokenizerBase, vocab: int) -> Tensor:
    """(vocab,) True for tokens that surely end an answer, special tokens among them.

    Tokens are judged by the text that they add behind another, not as the vocabulary writes them: byte-level BPE maps
    bytes to letters, SentencePiece to `<0xE3>`.
    """
    special = set(tokenizer.all_special_ids)
    texts = token_texts(tokenizer, range(min(vocab, len(tokenizer))))
    stops = [i in special or ends_answer(text) is True for i, text in enumerate(texts)]
    return torch.tensor(stops + [False] * (vocab - len(stops)))


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> list[str]:
    """The text that each token adds behind a word; its leading space is kept, part of a character is `PARTIAL`."""
    anchor = encode_prompts(tokenizer, ["a"])[0][-1:]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before = len(str(tokenizer.decode(anchor, **options)))
    return [str(text)[before:] for text in tokenizer.batch_decode([[*anchor, i] for i in ids], **options)]


def score_call(runner: Runner, call: Call, stops: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[Answer]:
    """Score every row of a call, in its order.

    A row whose tokens are all right, but whose next token alone does not tell whether the answer ends there, is generated
    and judged by its text.
    """
    return score_rows(runner, call, stops, tokenizer)[0]


def score_rows(
    runner: Runner, call: Call, stops: Tensor, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Answer], frozenset[int]]:
    """`score_call`, and the rows that had to be generated: their answers depend on more than the tokens of the row."""
    results: list[Answer | None] = [None] * len(call.prompts)
    undecided: dict[int, tuple[list[int], int]] = {}
    for batch in runner.logits(call):
        logits = batch.logits.float()
        guess = logits.argmax(-1)
        total = torch.logsumexp(logits, -1)
        at = 0
        lengths = [len(ids) for ids in batch.ids]
        flat = torch.tensor([i for ids in batch.ids for i in ids], dtype=torch.long, device=logits.device)
        position = torch.tensor(
            [start + k for start, n in _starts(lengths) for k in range(n)], dtype=torch.long, device=logits.device
        )
        picked = logits[position, flat]
        rivals = logits[position]
        rivals[torch.arange(len(flat)), flat] = float("-inf")
        log_probs = (picked - total[position]).cpu().tolist()
        margins = (picked - rivals.amax(-1)).cpu().tolist()
        guess_list = guess.cpu().tolist()
        stop_here = stops[guess.cpu()].tolist()
        done = 0
        for row, ids in zip(batch.rows, batch.ids, strict=True):
            n = len(ids)
            here = guess_list[at : at + n + 1]
            right = [g == i for g, i in zip(here, ids, strict=False)]
            results[row] = Answer(
                exact=all(right) and n > 0 and stop_here[at + n],
                token_accuracy=sum(right) / n if n else 0.0,
                log_prob=sum(log_probs[done : done + n]),
                margin=min(margins[done : done + n], default=float("-inf")),
                argmax_text=str(tokenizer.decode(here, skip_special_tokens=True)),
                num_tokens=n,
            )
            if all(right) and n > 0 and not stop_here[at + n]:
                undecided[row] = (ids, here[n])
            at += n + 1
            done += n
    rows = _untold(undecided, tokenizer)
    for row in _end_in_text(runner, call, undecided, rows, tokenizer):
        answer = results[row]
        assert answer is not None
        results[row] = replace(answer, exact=True)
    return [r for r in results if r is not None], frozenset(rows)


def likelihoods_of(runner: Runner, call: Call) -> list[tuple[float, int]]:
    """(sum of token log-probabilities in nats, number of tokens) of each row's continuation."""
    results: list[tuple[float, int]] = [(0.0, 0)] * len(call.prompts)
    for batch in runner.logits(call):
        at = 0
        for row, ids in zip(batch.rows, batch.ids, strict=True):
            picked = batch.logits[at : at + len(ids)].float().log_softmax(-1)
            total = picked.gather(1, torch.tensor(ids, device=picked.device)[:, None]).sum().item() if ids else 0.0
            results[row] = (total, len(ids))
            at += len(ids) + 1
    return results


def next_log_probs_of(runner: Runner, call: Call) -> list[NDArray[np.float32]]:
    """(vocab,) log-probabilities of the token after each prompt of a call without continuations."""
    rows: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * len(call.prompts)
    for batch in runner.logits(call):
        values = batch.logits.float().log_softmax(-1).cpu().numpy()
        for row, value in zip(batch.rows, values, strict=True):
            rows[row] = value
    return rows


def _untold(right: Mapping[int, tuple[list[int], int]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Of rows that say their continuation, those whose next token cannot tell whether it ends there.

    Args:
        right: row -> the ids of its continuation, and the token that the model puts behind them.
    """
    if not right:
        return []
    texts = token_texts(tokenizer, [token for _, token in right.values()])
    return [row for row, text in zip(right, texts, strict=True) if ends_answer(text) is None]


def _end_in_text(
    runner: Runner,
    call: Call,
    right: Mapping[int, tuple[list[int], int]],
    rows: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
) -> list[int]:
    """Of `rows`, which say their continuation's ids (see `_untold`), those whose generated text ends it."""
    if not rows:
        return []
    prompts = [call.prompts[row] for row in rows]
    longest = max(len(right[row][0]) for row in rows)
    said = runner.generate(prompts, Generation(longest + TOKENS_BEHIND))
    ending = []
    for row, head, text in zip(rows, encode_prompts(tokenizer, prompts), said, strict=True):
        answer = said_text(tokenizer, head, right[row][0])
        behind = text[len(answer) :]
        if text.startswith(answer) and (ends_answer(behind) or not behind.strip()):
            ending.append(row)
    return ending


def _starts(lengths: list[int]) -> list[tuple[int, int]]:
    """(first position, length) of every row in a packed block that gives each row one position more than its length."""
    starts, at = [], 0
    for n in lengths:
        starts.append((at, n))
        at += n + 1
    return starts
