"""Exact match under greedy decoding from one teacher-forced pass (METRICS: the indicator of every rate)."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from editors.calls import Call, Runner
from warehouse.questions import Answer

#: Small words that join the parts of a name: "Bank" before " of" is not yet the whole answer.
CONNECTORS = {
    "of",
    "the",
    "de",
    "da",
    "do",
    "di",
    "du",
    "del",
    "la",
    "le",
    "von",
    "van",
    "der",
    "den",
    "al",
    "el",
    "y",
    "e",
}
JOINERS = "-'’&"
SPACES = ("Ġ", "▁")  # how byte-level BPE and SentencePiece write a leading space


def ends_answer(piece: str) -> bool:
    """Does a token, as written in the vocabulary, end the entity before it?

    Punctuation and line ends do; so does a new word in lower case, which cannot carry a name on unless it is a
    connector. A capital, a digit, a hyphen or the rest of a word make the answer a longer one.
    """
    if not piece or piece[0] == "Ċ" or piece[0] == "\n":
        return True
    if piece[0] in SPACES or piece[0] == " ":
        word = piece[1:]
        if not word:
            return True
        return not (word[0].isupper() or word[0].isdigit() or word in CONNECTORS or word[0] in JOINERS)
    return not (piece[0].isalnum() or piece[0] in JOINERS)


def stop_tokens(tokenizer: PreTrainedTokenizerBase, vocab: int) -> Tensor:
    """(vocab,) True for tokens that end an answer, special tokens among them."""
    special = set(tokenizer.all_special_ids)
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(vocab, len(tokenizer)))))
    stops = [i in special or ends_answer(piece) for i, piece in enumerate(pieces)]
    return torch.tensor(stops + [False] * (vocab - len(stops)))


def score_call(runner: Runner, call: Call, stops: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[Answer]:
    """Score every row of a call, in its order."""
    results: list[Answer | None] = [None] * len(call.prompts)
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
            )
            at += n + 1
            done += n
    return [r for r in results if r is not None]


def _starts(lengths: list[int]) -> list[tuple[int, int]]:
    """(first position, length) of every row in a packed block that gives each row one position more than its length."""
    starts, at = [], 0
    for n in lengths:
        starts.append((at, n))
        at += n + 1
    return starts
