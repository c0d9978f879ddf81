"""One key for everything that has two spellings: ids, relations, labels, and the slot of a request.

The validator, the ledger, `blame`, the fact table, the property list and the readers of entities and requests all ask
here, so that two spellings of one thing never are two things. Nothing here reads a database: what needs the store's
labels is in `warehouse.world.known_names`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import unquote

from warehouse.records import EditRequest

#: Key of a slot's subject and of its relation.
Slot = tuple[str, str]

#: Typographic forms of one sign: a label typed on another keyboard is the same label.
_TYPED = str.maketrans(
    dict.fromkeys("\u2018\u2019\u02bc\u00b4`\u2032\u201b", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u2033", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
)
_SPACES = re.compile(r"[^\S\n\r\x0b\x0c\x1c-\x1f\x85]+")
_NORMAL = re.compile(r"[QP][1-9][0-9]{0,9}")
_ID = re.compile(r"(?:([QPLE])\s?0*([1-9][0-9]{0,9})|(L[1-9][0-9]{0,9}-[FS][1-9][0-9]{0,9})|(M[1-9][0-9]{0,9}))", re.I)
#: Prefixes under which Wikidata, SPARQL and bots write its ids; every other prefix may be somebody else's.
_PREFIX = re.compile(
    r"(?:wikidata|wd|wdt|wdtn|p|ps|psn|psv|pq|pqn|pqv|pr|prn|prv|d|item|property|lexeme|entityschema|special:entitydata"
    r"|special:entitypage)\s*:\s*",
    re.I,
)
_SITE = re.compile(r"(?:https?:)?(?://)?(?:[a-z]+\.)*wikidata\.org(?::\d+)?/", re.I)
_TITLE = re.compile(r"[?&](?:title|ids|id|entity)=([^&#]+)", re.I)
_SUFFIX = re.compile(r"\.(?:json|jsonld|rdf|ttl|nt|n3|php|html)\Z", re.I)
#: "place of birth (P19)" and "P19 (place of birth)", as people and reports write them.
_BESIDE = re.compile(r"(?:[^()]*\(\s*([QP][0-9]+)\s*\)|([QP][0-9]+)\s*\([^()]*\)|([QP][0-9]+)\s*[|:]\s*[^/]*)", re.I)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


# ---------------------------------------------------------------- texts


def clean_text(text: str) -> str:
    """A label or prompt as it is kept: NFC, every run of spaces of any kind one plain space, none at the ends.

    Line ends and control characters stay, and so do invisible marks: the rules of the door look at them.
    """
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip()


def folded(text: str) -> str:
    """Equal for texts that differ in case, spaces, Unicode form, invisible marks or typographic signs."""
    plain = unicodedata.normalize("NFKC", text).translate(_TYPED).casefold()
    seen = "".join(char for char in plain if unicodedata.category(char) != "Cf")
    # Once more: a fold can leave a form that is not composed.
    return " ".join(unicodedata.normalize("NFKC", seen).split())


def text_key(text: str) -> str:
    """The key of a subject or object that has a label and no id."""
    return "text:" + folded(text)


# ---------------------------------------------------------------- ids and relations


def entity_id(text: str) -> str:
    """The Wikidata id that a text names, in its one form (`Q42`, `P19`), or the text without spaces around it.

    Read are: lower case and spaces, wide digits, leading zeros, `wd:Q42`, `Property:P19`, `[[Q42]]`, `<...>`, concept
    URIs and page addresses of wikidata.org with http or https, a fragment, a query or an extension, and an id in
    brackets beside its label. Ids of other stores stay as they are.
    """
    if _NORMAL.fullmatch(text):
        return text  # a dump holds nothing else
    plain = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf").strip()
    bare = unquote(plain).strip("<>[]\"' \t\r\n")
    for candidate in _candidates(bare):
        if match := _ID.fullmatch(candidate):
            letter, number, form, media = match.groups()
            return f"{letter.upper()}{number}" if letter else (form or media).upper()
    return plain


def _candidates(bare: str) -> Iterable[str]:
    yield bare
    if site := _SITE.match(bare):
        if title := _TITLE.search(bare):
            yield _without_prefix(title.group(1))
        path = re.split(r"[?#]", bare[site.end() :], maxsplit=1)[0].rstrip("/")
        yield _without_prefix(_SUFFIX.sub("", path.rpartition("/")[2]))
        return
    prefixed = _without_prefix(re.split(r"[?#]", bare, maxsplit=1)[0].strip())
    yield prefixed
    if beside := _BESIDE.fullmatch(bare):
        yield next(filter(None, beside.groups()))


def _without_prefix(text: str) -> str:
    return _PREFIX.sub("", text, count=1) if _PREFIX.match(text) else text


def is_property_id(text: str) -> bool:
    """Whether a normal id is one of a property."""
    return re.fullmatch(r"P[1-9][0-9]{0,9}", text) is not None


def relation_words(text: str) -> str:
    """Equal for the ways to write the name of a relation: `place of birth`, `Place_of_birth`, `placeOfBirth`."""
    return folded(_CAMEL.sub(" ", text).replace("_", " ").replace("-", " ")).strip(" :.?")


# ---------------------------------------------------------------- slots


def subject_key(subject_id: str, subject: str) -> str:
    return subject_id or text_key(subject)


def relation_key(relation: str, prompt: str) -> str:
    """A request without relation is about its prompt: the survey's eq. 3 then compares equal prompts."""
    return relation or "prompt:" + folded(prompt)


def slot_of(request: EditRequest) -> Slot:
    """Subject and relation of a request, by id where it has one."""
    return subject_key(request.subject_id, request.subject), relation_key(request.relation, request.prompt)


class Slots:
    """The slots of some requests; another request is about one of them by id, or by label where one of the two has no id."""

    def __init__(self, requests: Iterable[EditRequest]) -> None:
        self._keys: set[Slot] = set()
        self._labels: set[Slot] = set()
        self._without_id: set[Slot] = set()
        for request in requests:
            key = slot_of(request)
            labelled = text_key(request.subject), key[1]
            self._keys.add(key)
            self._labels.add(labelled)
            if not request.subject_id:
                self._without_id.add(labelled)

    def __contains__(self, request: object) -> bool:
        assert isinstance(request, EditRequest)
        key = slot_of(request)
        labelled = text_key(request.subject), key[1]
        return key in self._keys or labelled in (self._without_id if request.subject_id else self._labels)
