"""Where a prompt names its subject: whole words, and of several namings the one that the question is about."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from editors.asking.joining import is_spaceless
from editors.errors import InvalidRequest
from warehouse.questions import PARTICLES

#: Those that do not end one naming and begin another: "Republic of Congo" is one name.
INNER = PARTICLES | {"and", "della", "des"}
#: First and last syllable of Hangul, whose particles are written on to the name before them.
HANGUL = ("\uac00", "\ud7a3")
SLOT = "{}"


def subject_places(text: str, subject: str) -> list[int]:
    """Where the subject stands as whole words: "Niger" does not stand in "Nigeria".

    Scripts without spaces have no such bounds: every occurrence counts.
    """
    places, at = [], text.find(subject) if subject.strip() else -1
    while at >= 0:
        end = at + len(subject)
        if not (_same_word(text[at - 1 : at], subject[0]) or _same_word(subject[-1], text[end : end + 1])):
            places.append(at)
        at = text.find(subject, at + 1)
    return places


def place_of(prompt: str, subject: str, wordings: Iterable[str] = (), tokenizer: PreTrainedTokenizerBase | None = None) -> int:
    """The character at which the naming of the subject begins that the prompt asks about.

    Args:
        wordings: templates with `{}` for the subject; where one of them made the prompt, the slot is the place.
        tokenizer: where given, a naming that ends with a token is preferred to one that a token goes on from.

    Of several namings the last counts that is not part of a longer name ("Guinea-Bissau", "Papua New Guinea").

    Raises:
        InvalidRequest: the subject is not in the prompt, or only inside a longer word.
    """
    places = subject_places(prompt, subject)
    if not places:
        raise InvalidRequest(_missing(prompt, subject))
    if len(places) == 1:
        return places[0]
    for wording in wordings:
        if wording.count(SLOT) == 1 and wording.replace(SLOT, subject) == prompt:
            return wording.index(SLOT)
    edges = _token_edges(prompt, tokenizer)
    length = len(subject)
    return max(places, key=lambda at: (_stands_alone(prompt, at, at + length), at + length in edges, at))


def naming_places(
    prompt: str, subject: str, wordings: Iterable[str] = (), tokenizer: PreTrainedTokenizerBase | None = None
) -> list[int]:
    """The characters at which the prompt names the subject, ascending: where `place_of` finds it, and every other naming
    that is not part of a longer name. A chat asks for the capital of France, and its answer begins "The capital of France".

    Raises:
        InvalidRequest: as `place_of`.
    """
    asked = place_of(prompt, subject, wordings, tokenizer)
    others = [at for at in subject_places(prompt, subject) if _stands_alone(prompt, at, at + len(subject))]
    return sorted({asked, *others})


def _missing(prompt: str, subject: str) -> str:
    at = prompt.find(subject) if subject.strip() else -1
    if at < 0:
        return f"subject {subject!r} is not in the prompt {prompt!r}; a prompt must name its subject"
    first, end = at, at + len(subject)
    while first and _is_letter(prompt[first - 1]):
        first -= 1
    while end < len(prompt) and _is_letter(prompt[end]):
        end += 1
    return (
        f"subject {subject!r} stands in the prompt {prompt!r} only inside the longer word {prompt[first:end]!r}; a prompt must "
        "name its subject: write the subject as the prompt has it"
    )


def _is_letter(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"


def _same_word(left: str, right: str) -> bool:
    """Do two neighbouring characters belong to one word?"""
    if not left or not right or not _is_letter(left) or not _is_letter(right):
        return False
    return not (is_spaceless(left) or is_spaceless(right) or HANGUL[0] <= right <= HANGUL[1])


def _stands_alone(text: str, at: int, end: int) -> bool:
    """Is the naming no part of a longer name, as far as hyphens and capitals tell?"""
    if re.match(r"[-‐‑/]\w", text[end:]) or re.search(r"\w[-‐‑/]$", text[:at]):
        return False
    behind = re.match(r" (\w)", text[end:])
    if behind and behind[1].isupper():
        return False
    words = re.split(r"\s+", text[:at])
    if words.pop():
        return True  # something but a space stands before it
    while words and words[-1] in INNER:
        words.pop()
    # The first word of a sentence has a capital whatever it is.
    is_first = len(words) <= 1 or words[-2].endswith((".", "?", "!", ":"))
    return is_first or not words[-1][-1:].isalnum() or not words[-1][:1].isupper()


def _token_edges(text: str, tokenizer: PreTrainedTokenizerBase | None) -> set[int]:
    if tokenizer is None:
        return set()
    return {end for _, end in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]}
