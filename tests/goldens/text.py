"""Tokens of the goldens' texts: byte-pair merges by hand, and the places that editors look up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from tests.goldens.world import END, MERGES, PAD, VOCABULARY

IDS = {piece: number for number, piece in enumerate(VOCABULARY)}
#: GPT-2's split of a text into words, for ASCII.
WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
RANKS = {pair: rank for rank, pair in enumerate(MERGES)}


def tokens(text: str) -> list[str]:
    """The text's pieces: in each word the pair that was learnt first is joined first, leftmost first."""
    found: list[str] = []
    for word in WORDS.findall(text):
        pieces = list(word)
        while True:
            pairs = [(RANKS[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in RANKS]
            if not pairs:
                break
            _, at = min(pairs)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        found += pieces
    return found


def ids(text: str) -> list[int]:
    return [IDS[piece] for piece in tokens(text)]


def last_token_of(text: str, subject: str) -> int:
    """Number of the token that ends the last mention of the subject."""
    end = text.rindex(subject) + len(subject)
    read = 0
    for number, piece in enumerate(tokens(text)):
        read += len(piece)
        if read >= end:
            return number
    raise AssertionError(f"{subject!r} is not in {text!r}")


@dataclass(frozen=True)
class Row:
    """Prompt and answer as tokens; token `start` is the first of the answer."""

    ids: list[int]
    start: int

    @property
    def answer(self) -> list[int]:
        return self.ids[self.start :]


def answered(prompt: str, target: str) -> Row:
    """`prompt target`; the answer begins with its blank, which belongs to its first word."""
    start = len(tokens(prompt))
    whole = tokens(f"{prompt} {target}")
    assert "".join(whole[:start]) == prompt, "a token crosses the end of the prompt"
    return Row([IDS[piece] for piece in whole], start)


def ends_answer(piece: str) -> bool:
    """METRICS: the end of the text, punctuation, or a new word that cannot carry a name on."""
    if piece in (END, PAD):
        return True
    if piece == " ":
        # What follows decides; the text is judged then, not the token.
        return False
    if piece.startswith(" "):
        word = piece[1:]
        small_words_in_names = {"of", "the", "e", "y", "da", "de", "di", "do", "du", "la", "le", "al", "el"}
        return not (word[0].isupper() or word[0].isdigit() or word[0] in "-'&" or word in small_words_in_names)
    return not (piece[0].isalnum() or piece[0] in "-'&")


STOPS = [number for number, piece in enumerate(VOCABULARY) if ends_answer(piece)]
