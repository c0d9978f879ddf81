"""Whether a text can be the name of something: rule 1 of the policy for one label, the same for every source."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache

from warehouse.reference.world import facts
from warehouse.world.placeholders import is_placeholder

#: Wikidata's own limit for labels.
MAX_LABEL_CHARS = 250
#: Targets of a user's request may be sentences (KnowEdit's WikiBio), not whole documents.
MAX_TEXT_CHARS = 4_000
#: A target of more words is a sentence, and may quote an address or a line of code.
MAX_NAME_WORDS = 8
#: Of the letters of a word taken by threes: from this share on that no name of the world has, it is no word.
UNHEARD_SHARE = 0.5

_BARE_ID = re.compile(r"[QPL]\d+\Z")
_MARKUP = re.compile(r"[<>]|</|&#?[a-z0-9]+;|\[\[|\]\]|'''|^=+ .* =+$", re.I)
_ADDRESS = re.compile(r"\b(?:https?|ftp|file|data|javascript|mailto):\S|\bwww\.|\S+@\S+\.\w+", re.I)
_CODE = re.compile(
    r"""["')]\s*;|;\s*--|\b(?:drop|alter|create)\s+table\b|\b(?:insert\s+into|delete\s+from|union\s+select)\b
    |\bselect\s+.+\sfrom\s+\S|["']\s*or\s+["'\d].*=|<\?php|\.\./|\\[ux][0-9a-f]{2}|%[0-9a-f]{2}%[0-9a-f]{2}|%00
    |^=\s*[A-Z]+\(|\bfunction\s*\(|\balert\(""",
    re.I | re.X,
)
#: UTF-8 read as Latin-1, and bytes that were no text at all.
_BROKEN = re.compile("\ufffd|[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac")
_SPAM = re.compile(
    r"\b(?:viagra|cialis|click here|visit my|my (?:web)?site|buy (?:now|cheap)|cheap pills|free money|lorem ipsum)\b", re.I
)
_LONG_RUN = re.compile(r"(.)\1{5,}", re.S)
_TESTING = re.compile(
    r"(?:test(?:ing)?|foo|bla+h?|lol|(?:ha|ja|he){2,})(?:[\s,.!\d]+(?:test(?:ing)?|foo|bar|bla+h?|lol|ha+))*"
    r"[\s\d!.]*"
)
_PRESSED = frozenset(
    {"asdf", "asd", "qwer", "zxcv", "hjkl", "jkl", "sdfg", "dfgh", "fghj", "qwe", "wer", "poiu", "lkjh", "asdfg"}
)
#: Names of what people do may begin with a capital: Egyptologist, Catholic priest, YouTuber.
_AGENT = re.compile(r"(?:ist|er|or|ian|man|men|woman|ess|ant|ent|ary|ate|ee|eer|iste|eur|ic|ar)\Z", re.I)
_KEYBOARD_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "1234567890", "qwertz", "azerty")


def has_control_characters(text: str) -> bool:
    """Control, unassigned or private characters and lone surrogates; invisible marks are `checks.door.text_safety`'s."""
    return any(unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn") for char in text)


# ---------------------------------------------------------------- keys pressed at random


def _is_keyboard_run(word: str) -> bool:
    return len(word) >= 3 and any(word in row or word[::-1] in row for row in _KEYBOARD_ROWS)


def _is_repeated(word: str) -> bool:
    """A syllable that is none, again and again: `sfgsfg`, `asdasd`; `couscous` is a word."""
    for size in (2, 3, 4):
        part = word[:size]
        if len(word) >= 2 * size and len(word) >= 6 and word == (part * len(word))[: len(word)]:
            return _is_keyboard_run(part) or not re.search("[aeiouy]", part)
    return False


@cache
def _trigrams() -> frozenset[str]:
    """Three letters in a row that occur in a name of the embedded world."""
    words = {word for f in facts() for label in (f.subject, f.object) for word in _letters(label).split()}
    return frozenset(word[i : i + 3] for word in words for i in range(len(word) - 2))


def _letters(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c if c.isalpha() else " " for c in plain if not unicodedata.combining(c))


def _is_unheard_of(word: str) -> bool:
    """Hardly any three letters of it stand in a row in any name that we know."""
    word = re.sub(r"(.)\1+", r"\1", word)  # riot grrrl
    parts = [word[i : i + 3] for i in range(len(word) - 2)]
    longest = max(map(len, re.findall("[bcdfghjklmnpqrstvwxz]+", word)), default=0)
    unheard = sum(part not in _trigrams() for part in parts) / max(len(parts), 1)
    return len(word) >= 5 and ((longest >= 4 and unheard >= UNHEARD_SHARE) or (longest >= 3 and unheard == 1))


def _is_mashed(label: str) -> bool:
    """Keys pressed in their order on the keyboard, and lower-case words that no language has."""
    words = [word for word in re.split(r"[\s,;.\-_/]+", label.casefold()) if word]
    runs = [word for word in words if word.isalpha() and _is_keyboard_run(word)]
    if any(len(run) >= 6 for run in runs) or (len(words) >= 2 and len(runs) == len(words)):
        return True
    if (words and all(word in _PRESSED for word in words)) or (len(label) >= 3 and len(set(label)) == 1 and label.islower()):
        return True
    plain = _letters(label).replace(" ", "")
    if len(plain) >= 7 and plain.isascii() and label == label.lower() and not re.search("[aeiouy]", plain):
        return True
    # A name has a capital; words of a class have letters that other words have.
    lower = [word for word in re.split(r"[\s,;.\-_/]+", label) if word.isascii() and word.isalpha() and word.islower()]
    return label == label.lower() and any(_is_repeated(word) or _is_unheard_of(word) for word in lower)


# ---------------------------------------------------------------- one label, one text


def is_junk(text: str) -> bool:
    """No name of anything: a placeholder, markup, an address, code, broken bytes, advertising, or keys at random."""
    return (
        is_placeholder(text)
        or any(pattern.search(text) for pattern in (_MARKUP, _ADDRESS, _CODE, _BROKEN, _SPAM, _LONG_RUN))
        or _TESTING.fullmatch(text) is not None
        or any("\U0001f300" <= char <= "\U0001faff" for char in text)
        or _is_mashed(text)
    )


@lru_cache(maxsize=1 << 16)  # a night names the same entities again and again
def label_problem(label: str) -> str | None:
    """Reason code for a label that no statement should carry, or None; see rule 1 of the policy."""
    text = label.strip()
    if not text:
        return "empty_label"
    if len(text) > MAX_LABEL_CHARS or has_control_characters(text) or not any(char.isalnum() for char in text) or is_junk(text):
        return "malformed_label"
    if _BARE_ID.match(text) or not _is_latin(text):
        return "no_english_label"
    return None


def _is_latin(text: str) -> bool:
    letters = [char for char in text if char.isalpha()]
    latin = sum(unicodedata.name(char, "").startswith(("LATIN", "FULLWIDTH LATIN", "MODIFIER")) for char in letters)
    # A label without letters (a year, a number) reads the same in English.
    return not letters or latin * 2 >= len(letters)


def label_form(label: str) -> str | None:
    """What the spelling of an English label says: a `class` has no capital, a `name` begins each word with one.

    `classes`: a class of more than one word.
    """
    words = [word for word in re.split(r"[\s\-/]+", label) if any(char.isalpha() for char in word)]
    if max(map(len, words), default=0) < 3 or any(char.isdigit() for char in label):
        return None
    if label == label.lower():
        if not label.isascii() or "." in label:
            return None
        return "classes" if len(words) > 1 else "class"
    if all(word[0].isupper() and not word.isupper() for word in words) and not _AGENT.search(label):
        return "name"
    return None


def plain_text_problem(text: str) -> str | None:
    """What no text at all may be: empty, too long, or full of control characters."""
    if not text.strip():
        return "empty_label"
    controls = has_control_characters(text.replace("\n", " ").replace("\t", " ").replace("\r", " "))
    return "malformed_label" if controls or len(text) > MAX_TEXT_CHARS else None


def text_problem(text: str) -> str | None:
    """As `label_problem` for a text of a user's request: script and length are his own affair, and so is what a sentence
    quotes.
    """
    if problem := plain_text_problem(text):
        return problem
    if len(text.split()) > MAX_NAME_WORDS:
        return "malformed_label" if is_placeholder(text) else None
    if is_junk(text):
        return "malformed_label"
    return "no_english_label" if _BARE_ID.match(text.strip()) else None
