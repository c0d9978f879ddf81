"""What spreadsheets, frames, databases and people write where there is nothing: no name, no answer, no id."""

from __future__ import annotations

import re
import unicodedata

#: Compared without case, brackets, quotes and final dots.
_WORDS = frozenset((
    "nan", "null", "none", "nil", "n/a", "n.a", "n/d", "n.d", "nat", "na/na", "undefined", "unknown", "unspecified", "unset",
    "test", "todo", "tbd", "tba", "tbc", "fixme", "xxx", "placeholder", "foobar", "inf", "-inf", "+inf", "-infinity",
    "+infinity", "-nan", "+nan", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "1.#inf", "#na", "\\n", "undef", "nullptr",
    "not_available", "not_applicable", "nodata", "no_data", "no label", "no value", "no data", "no name", "no answer",
    "no entry", "no title", "not available", "not applicable", "not known", "not set", "not given", "to be determined",
    "to be decided", "to be announced", "to be confirmed", "to do", "lorem ipsum", "loading...", "#n/a n/a",
    "value missing", "see above", "same as above", "[object object]", "object object", "insert text", "enter text",
    "enter text here", "your text here", "(empty)", "(blank)", "(none)", "(missing)", "(unknown)", "<empty>", "<blank>",
))  # fmt: skip
#: Written like this only: `Na` is sodium, and a word of a name.
_EXACT = frozenset({"NA", "<NA>", "NAN"})
#: `#REF!`, `#DIV/0!`, `#N/A`, `#NAME?`, `#WERT!`, `Err:502`: what spreadsheets show in place of a value.
_ERROR = re.compile(
    r"#(?:[A-Z\u00c0-\u00de][A-Z\u00c0-\u00de0-9/_.]*[!?]|N/?[ADV]|REF|VALUE|NAME|NUM|NULL|DIV/0|GETTING_DATA)"
    r"|Err(?:or)?:\s?\d{3}|%[sd]",
    re.I,
)
_AROUND = "()[]<>{}\"'`\u2018\u2019\u201c\u201d* "


def is_placeholder(text: str) -> bool:
    """Whether a text stands for nothing: a word such as `n/a`, a spreadsheet's error, or nothing but punctuation."""
    plain = unicodedata.normalize("NFKC", text).strip()
    if not plain:
        return False
    bare = plain.strip(_AROUND).rstrip(".:;! ")
    return (
        plain in _EXACT
        or _ERROR.fullmatch(plain) is not None
        or plain.casefold() in _WORDS
        or bare.casefold() in _WORDS
        or " ".join(bare.casefold().split()) in _WORDS
        # Signs (a currency, an operator) can be an answer; dashes, dots, question marks and underscores cannot.
        or all(unicodedata.category(char)[0] in "PZC" for char in plain)
    )
