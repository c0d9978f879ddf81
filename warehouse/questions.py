"""A question to a model, how the model stands to its answer, and where an answer ends: what editors and checks share."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

#: Small words between the parts of a name.
PARTICLES = frozenset(("of", "the", "de", "da", "do", "di", "du", "del", "la", "le", "von", "van", "der", "den", "al", "el"))
#: Small words that join the parts of a name: "Bank" before " of" is not yet the whole answer.
CONNECTORS = PARTICLES | {"y", "e"}
JOINERS = "-'’&‐‑·・׳״\u200c\u200d\u00ad"
#: What a decoder writes for bytes that are no whole character (yet).
PARTIAL = "\ufffd"


@dataclass(frozen=True)
class Question:
    """A prompt and one accepted answer; the answer has no leading space, the prompt no trailing one."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Answer:
    """One teacher-forced pass over `prompt + " " + answer`.

    Attributes:
        exact: greedy decoding from the prompt would give all answer tokens and then stop the entity.
        token_accuracy: share of answer tokens that are the argmax (the softer rate; never gates).
        log_prob: sum of log-probabilities of the answer tokens, in nats.
        margin: smallest logit lead of an answer token over its best rival (negative where the rival wins).
        argmax_text: the argmax at every answer position and the stop position, decoded.
        num_tokens: of the answer; 0: not told, and then nothing can be said of a token's mean log-probability.
    """

    exact: bool
    token_accuracy: float
    log_prob: float
    margin: float
    argmax_text: str
    num_tokens: int = 0


def ends_answer(text: str) -> bool | None:
    """Does the text behind an entity end it? None: too little of it to tell (a lone space, part of a character).

    Punctuation and line ends do; so does a new word in lower case, which cannot carry a name on unless it is a
    connector. A capital, a digit, a hyphen or the rest of a word make the answer a longer one.
    """
    word = text[1:] if text and unicodedata.category(text[0]) == "Zs" else text
    if word.startswith(PARTIAL) or (not word and text):
        return None
    if not word:
        return True
    if word is not text:
        first = word.split()[0] if not word[0].isspace() else ""
        return not (word[0].isupper() or word[0].istitle() or word[0].isdigit() or first in CONNECTORS or word[0] in JOINERS)
    # Marks are the vowels of many scripts.
    return not (word[0].isalnum() or unicodedata.category(word[0])[0] == "M" or word[0] in JOINERS)
