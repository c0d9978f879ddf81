"""Security of the door: entity text is data, and a night that would plant a trigger or an instruction waits.

Three kinds of rule, all with the reason `suspicious` and their own rule name. *Text*: one label alone (invisible
characters, template braces, words to a language model). *Likeness*: a label that only looks like one of the store.
*Rates*: what many records of a night do together (a trigger word, a rare object, a burst), against the last nights.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from checks.door.text_safety_policy import DoorPolicy
from warehouse.database.connection import Reader
from warehouse.nights.suspicion_queries import labels_with_look
from warehouse.records import EditRequest
from warehouse.reference.confusables import look_alikes
from warehouse.world.changes import Change, Malformed

#: Names of the rules, as a verdict and a waiver give them.
TEXT_RULES = ("invisible_characters", "template_braces", "prompt_like_text")
LIKENESS_RULE = "homoglyph_label"
RATE_RULES = ("trigger_word", "rare_object", "property_burst", "object_burst")

_BRACES = re.compile(r"[{}]|<%|%>|\$\(")
_SPACE = re.compile(r"\s+")
#: Vowels of Latin letters once their marks are off; a word without one is no word of a name.
_VOWELS = re.compile(r"[aeiouyæœøıə]", re.I)
_SYMBOLS = frozenset("|#@~^*\\=_§¤`<>")


@dataclass(frozen=True)
class Suspicion:
    """Why a record waits: the rule, a sentence with what was found, and the records that make it one of several."""

    rule: str
    sentence: str
    related: tuple[str, ...] = ()


# ---------------------------------------------------------------- one text


@cache
def _prompt_like(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.I | re.S) for pattern in patterns)


def text_suspicions(text: str, policy: DoorPolicy) -> list[Suspicion]:
    """What is wrong with one label, whatever the others are."""
    found = []
    hidden = sorted({f"U+{ord(c):04X}" for c in text if unicodedata.category(c) == "Cf"})
    if hidden:
        found.append(
            Suspicion("invisible_characters", f"'{_shown(text)}' holds invisible or direction marks {', '.join(hidden)}.")
        )
    if match := _BRACES.search(text):
        found.append(Suspicion("template_braces", f"'{_shown(text)}' holds '{match.group()}', which a template would read."))
    # Look-alikes and marks must not hide the words.
    plain = _SPACE.sub(" ", skeleton(text))
    for pattern in _prompt_like(policy.prompt_like):
        if match := pattern.search(plain):
            found.append(
                Suspicion("prompt_like_text", f"'{_shown(text)}' speaks to a language model ('{_shown(match.group())}').")
            )
            break
    return found


def _shown(text: str) -> str:
    safe = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return safe if len(safe) <= 60 else safe[:57] + "..."


def labels_of(record: Change | EditRequest) -> tuple[str, ...]:
    """The texts of a record that a prompt or a target is made of."""
    if isinstance(record, EditRequest):
        return (record.subject, record.target_new)
    return (record.subject.label, *([record.new.label] if record.new is not None else []))


# ---------------------------------------------------------------- likeness


def skeleton(text: str) -> str:
    """What a label looks like: NFKC, case-folded, Cyrillic and Greek look-alikes as Latin letters, no invisible marks."""
    table = look_alikes()
    plain = unicodedata.normalize("NFKC", text)
    shown = "".join(table.get(char, char) for char in plain if unicodedata.category(char) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", shown).casefold().split())


def _disguised(text: str) -> bool:
    return any(char in look_alikes() for char in text) or unicodedata.normalize("NFKC", text) != unicodedata.normalize(
        "NFC", text
    )


def likeness_suspicions(store: Reader, records: Mapping[str, Change | EditRequest]) -> dict[str, Suspicion]:
    """Records with a label that looks like one of the store (or its alias) and is written with other letters."""
    disguised = [
        (record_id, entity, label)
        for record_id, record in records.items()
        for entity, label in _named(record)
        if _disguised(label)
    ]
    if not disguised:
        return {}
    known: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in labels_with_look(store, [skeleton(label) for _, _, label in disguised]):
        known[row["look"]].append((row["entity"], row["label"]))
    found = {}
    for record_id, entity, label in disguised:
        # Compatibility forms of an entity's own label (a wide letter, a ligature) are sloppy, not a disguise.
        own = not any(char in look_alikes() for char in label)
        for other, plain in known[skeleton(label)]:
            if plain != label and not (own and other == entity):
                found[record_id] = Suspicion(
                    LIKENESS_RULE, f"'{_shown(label)}' ({entity}) only looks like '{plain}' ({other}) of the store."
                )
                break
    return found


def _named(record: Change | EditRequest) -> list[tuple[str, str]]:
    if isinstance(record, EditRequest):
        return [(record.subject_id, record.subject), (record.target_new_id, record.target_new)]
    new = [] if record.new is None else [(record.new.id, record.new.label)]
    return [(record.subject.id, record.subject.label), *new]


def text_and_likeness(
    store: Reader, records: Mapping[str, Any], policy: DoorPolicy, waived: Mapping[str, Collection[str]]
) -> dict[str, Suspicion]:
    """The first suspicion of each record that nobody has waived; records that cannot be read have none."""
    readable = {i: r for i, r in records.items() if not isinstance(r, Malformed)}
    alike = likeness_suspicions(store, readable)
    found = {}
    for record_id, record in readable.items():
        every = [s for label in labels_of(record) for s in text_suspicions(label, policy)]
        every += [alike[record_id]] if record_id in alike else []
        standing = [s for s in every if s.rule not in waived.get(record_id, ())]
        if standing:
            found[record_id] = standing[0]
    return found


# ---------------------------------------------------------------- words that are no words


def odd_words(labels: Iterable[str]) -> set[str]:
    """Words with a symbol inside, and short lower-case words without a vowel, as backdoor triggers are made of."""
    words = {word.strip(".,;:!?()\"'“”’") for label in labels for word in label.split()}
    return {word for word in words if _is_odd(word)}


def _is_odd(word: str) -> bool:
    if len(word) >= 2 and any(char in _SYMBOLS for char in word):
        return True
    plain = "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
    return 2 <= len(plain) <= 4 and plain.isalpha() and plain.islower() and not _VOWELS.search(plain)
