"""Where a text goes on without a space: behind white space, an opening quote or bracket, and in scripts that write none."""

from __future__ import annotations

import re
import unicodedata

#: Quotes that open in one language and close in another, with those that opened before them where they close.
EITHER = {"“": "„‟", "‘": "‚‛", "«": "»", "»": "«", "‹": "›", "›": "‹", '"': '"', "'": "'"}
#: Words that lose their vowel before a name, beside single letters: "dell'Orto", "qu'Alice".
ELIDED = {"qu", "dell", "nell", "all", "dall", "sull", "coll", "un", "quell", "bell", "sant", "jusqu", "lorsqu", "puisqu"}
APOSTROPHES = "'’"
#: First and last code points of scripts that write words without a space between them, their punctuation included.
SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x312F),  # Han radicals, CJK punctuation, Hiragana, Katakana, Bopomofo
    (0x31A0, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFE30, 0xFE4F),
    (0xFF00, 0xFF9F),  # full-width forms, half-width Katakana
    (0x20000, 0x3FFFF),
)


def joined(prompt: str, continuation: str) -> str:
    """The continuation as it stands behind the prompt: without its leading space where writing has none there."""
    return continuation[1:] if continuation.startswith(" ") and prompt and _takes_no_space(prompt) else continuation


def is_spaceless(char: str) -> bool:
    """Is the character of a script that writes no space between words?"""
    return any(first <= ord(char) <= last for first, last in SPACELESS)


def _takes_no_space(prompt: str) -> bool:
    last, before = prompt[-1], prompt[:-1]
    if last.isspace() or is_spaceless(last):
        return True
    if last in APOSTROPHES and before[-1:].isalpha():
        found = re.search(r"[^\W\d_]+$", before)
        return found is not None and (len(found[0]) == 1 or found[0].lower() in ELIDED)
    if last in EITHER:
        return not before[-1:].isalnum() and not _is_open(before, last)
    return unicodedata.category(last) in {"Ps", "Pi"} or last in "¿¡"


def _is_open(before: str, quote: str) -> bool:
    """Was a quotation begun that this quote ends?"""
    if EITHER[quote] == quote:
        return before.count(quote) % 2 == 1
    return max(before.rfind(mark) for mark in EITHER[quote]) > before.rfind(quote)
