"""One event of Wikimedia's `recentchange` stream: read, classified, and freed of whoever made the edit.

Fields are those of the published schema (wikimedia/schemas-event-primary, `jsonschema/mediawiki/recentchange`): only
`meta` is certain, every other field may be missing, null or of another type. Summaries follow the Wikibase grammar
`/* key:args */ rest`. Nothing here raises: what cannot be read comes back as `Refused` with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any, Literal

from pydantic_core import from_json

from warehouse.digests import sha256_bytes
from warehouse.sources.base import read_time

Action = Literal["fetch_and_diff", "tombstone", "term_or_sitelink_only", "drop"]
#: Edits whose content the warehouse wants to know; the other two are only counted.
KEPT: tuple[Action, ...] = ("fetch_and_diff", "tombstone")
#: A real event has 1 to 3 kB; a title 255 bytes, a summary 500 characters.
MAX_EVENT_CHARS = 256 * 1024
MAX_COMMENT_CHARS = 2_000
MAX_KEY_CHARS = 100
ITEM = re.compile(r"Q[1-9][0-9]{0,11}")
#: Wiki by the domain of `meta`, for events without `wiki`.
DOMAINS = {"www.wikidata.org": "wikidatawiki"}
#: Schema 1.0.1 allows `type` to be a number: MediaWiki's RC_* constants.
TYPES = {0: "edit", 1: "new", 3: "log", 5: "external", 6: "categorize"}

_SUMMARY = re.compile(r"\s*/\*\s*([A-Za-z][A-Za-z0-9-]{0,79})(?::([^*]*))?\*/(.*)", re.S)
_PROPERTY = re.compile(r"\[\[Property:(P[1-9][0-9]{0,9})(?:\|[^\]]*)?\]\]")
_VALUE = re.compile(r"\s*:\s*(?:\[\[(?:[^\]|]*:)?([QPL][1-9][0-9]{0,11})(?:\|[^\]]*)?\]\]|([^\[\]]{1,250}))")
_TEMPORARY = re.compile(r"~[0-9]{4}-[0-9]")
#: Message keys by prefix, first match counts: what an edit of that kind can have changed.
_TERMS = (
    "wbsetlabeldescriptionaliases",
    "wbsetlabel",
    "wbsetdescription",
    "wbsetaliases",
    "wbsetsitelink",
    "wblinktitles",
    "clientsitelink",
)
_KINDS: tuple[tuple[str, str], ...] = (
    ("wbsetclaim-update-references", "reference_only"), ("wbsetreference", "reference_only"),
    ("wbremovereferences", "reference_only"),
    ("wbsetclaim-update-rank", "rank_changed"), ("wbsetstatementrank", "rank_changed"),
    ("wbsetclaim-update-qualifiers", "qualifier_changed"), ("wbsetqualifier", "qualifier_changed"),
    ("wbremovequalifiers", "qualifier_changed"),
    ("wbremoveclaims", "statement_removed"),
    ("wbsetclaim", "statement_set"), ("wbcreateclaim", "statement_set"), ("wbsetclaimvalue", "statement_set"),
    ("undo", "undo"), ("restore", "restore"),
)  # fmt: skip
#: Kinds whose linked property is that of the statement; elsewhere it is a qualifier's, or there is none.
_OF_STATEMENT = ("rank_changed", "statement_removed", "statement_set")


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event as far as it matters.

    Attributes:
        key: of the event: `meta.id`; without it wiki and revision, or a digest.
        why: reason of the action, for counting ("statement_set", "other_wiki", "namespace:120").
        entity_id: "Q42"; "" where the event is dropped before its title is read.
        happened_at: `meta.dt`, else `timestamp`; None where both are missing.
        properties: properties linked in the summary; the statement's, where `names_statement`.
        editor_class: bot, temporary_account (also an address), autoconfirmed or newcomer; see `_editor_class`.
        summary: the machine's part of the summary, without user text and user names.
    """

    key: str
    action: Action
    why: str
    entity_id: str = ""
    wiki: str = ""
    rev_old: int | None = None
    rev_new: int | None = None
    happened_at: datetime | None = None
    autocomment: str = ""
    properties: tuple[str, ...] = ()
    value_hint: str = ""
    names_statement: bool = False
    editor_class: str = "unknown"
    patrolled: bool = False
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """Data that is no event: `reason` for counting, a sentence for people."""

    reason: str
    sentence: str


def parse_event(data: str, wiki: str = "wikidatawiki", namespaces: Collection[int] = (0,)) -> StreamEvent | Refused:
    """Read the `data` of one frame; admission goes from the cheapest question to the summary."""
    if len(data) > MAX_EVENT_CHARS:
        return Refused("too_large", f"it has {len(data)} characters; the limit is {MAX_EVENT_CHARS}")
    try:
        event = from_json(data.encode("utf-8", "surrogatepass"), allow_inf_nan=False)
    except ValueError as error:
        return Refused("undecodable", f"it is not JSON: {str(error)[:200]}")
    if not isinstance(event, dict):
        return Refused("not_an_object", f"it is a {type(event).__name__}; expected a JSON object")
    meta = event.get("meta")
    if not isinstance(meta, dict):
        return Refused("no_meta", "it has no object 'meta', which every event has")
    domain = meta.get("domain")
    if domain == "canary":
        return StreamEvent(_key(event, meta, data), "drop", "canary")
    found = event.get("wiki") or DOMAINS.get(domain if isinstance(domain, str) else "")
    if found != wiki:
        return StreamEvent(_key(event, meta, data), "drop", "other_wiki" if isinstance(found, str) else "no_wiki")
    return _of_wiki(event, meta, data, wiki, namespaces)


def admits(event: StreamEvent, properties: Collection[str]) -> bool:
    """Whether the edit can concern one of the properties; also true where the summary does not say."""
    return not (event.names_statement and event.properties) or any(p in properties for p in event.properties)


# ---------------------------------------------------------------- admission


def _of_wiki(
    event: dict[str, Any], meta: dict[str, Any], data: str, wiki: str, namespaces: Collection[int]
) -> StreamEvent | Refused:
    key, title, kind = _key(event, meta, data), _title(event, meta), event.get("type")
    kind = TYPES.get(kind, "") if isinstance(kind, int) and not isinstance(kind, bool) else kind
    if kind is None:
        kind = "edit"
    if kind == "log":
        return _log(event, meta, key, title, wiki)
    if kind not in ("edit", "new"):
        return StreamEvent(key, "drop", f"type:{kind[:20]}" if isinstance(kind, str) and kind.isalpha() else "type:unknown")
    namespace = event.get("namespace")
    if not isinstance(namespace, int):
        namespace = 0 if ITEM.fullmatch(title) else None
    if namespace not in namespaces:
        return StreamEvent(key, "drop", f"namespace:{namespace if namespace is None else namespace % 10_000}")
    if not ITEM.fullmatch(title):
        return StreamEvent(key, "drop", "no_item")
    revision = event.get("revision")
    old, new = (_count(revision.get(name)) for name in ("old", "new")) if isinstance(revision, dict) else (None, None)
    # A page's first revision has no older one; some events write 0.
    old = None if kind == "new" else old or None
    comment = event.get("comment")
    said = read_summary(comment if isinstance(comment, str) else "")
    action, why = said.action, said.why
    return StreamEvent(
        key,
        action,
        why,
        title,
        wiki,
        old,
        new,
        _time(event, meta),
        said.key,
        said.properties,
        said.value_hint,
        why in _OF_STATEMENT or said.key.startswith("wbsetclaim-update-qualifiers"),
        _editor_class(event),
        event.get("patrolled") is True,
        said.text,
    )


def _log(event: dict[str, Any], meta: dict[str, Any], key: str, title: str, wiki: str) -> StreamEvent:
    """Deletion and restoration of an item; other log entries say nothing about a fact."""
    action = event.get("log_action")
    if event.get("log_type") != "delete" or action not in ("delete", "restore") or not ITEM.fullmatch(title):
        return StreamEvent(key, "drop", "log")
    return StreamEvent(
        key,
        "tombstone" if action == "delete" else "fetch_and_diff",
        f"log:delete/{action}",
        title,
        wiki,
        happened_at=_time(event, meta),
        editor_class=_editor_class(event),
        patrolled=True,
    )


def _key(event: dict[str, Any], meta: dict[str, Any], data: str) -> str:
    own = meta.get("id")
    if isinstance(own, str) and 0 < len(own) <= MAX_KEY_CHARS and own.isascii() and own.isprintable():
        return own
    revision, wiki = event.get("revision"), event.get("wiki")
    new = _count(revision.get("new")) if isinstance(revision, dict) else None
    if new and isinstance(wiki, str) and len(wiki) <= 50 and wiki.isascii() and wiki.isprintable():
        return f"{wiki}:{new}"
    return f"sha256:{sha256_bytes(data.encode('utf-8', 'surrogatepass'))[:32]}"


def _title(event: dict[str, Any], meta: dict[str, Any]) -> str:
    title = event.get("title")
    if isinstance(title, str):
        return title
    for address in (event.get("title_url"), meta.get("uri")):
        if isinstance(address, str):
            return address.rpartition("/")[2]
    return ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _time(event: dict[str, Any], meta: dict[str, Any]) -> datetime | None:
    moment = read_time(meta.get("dt"))
    try:
        if moment is not None:
            return moment.astimezone(UTC)
        seconds = event.get("timestamp")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            return None
        # No event is from the year 5138 or later: such a number counts milliseconds.
        seconds = seconds / 1000 if abs(seconds) >= 1e11 else seconds
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return None


def _editor_class(event: dict[str, Any]) -> str:
    """Wikidata's public class, as far as an event tells it; the name itself is not kept.

    Edits of accounts with autopatrol (on Wikidata every autoconfirmed one) are marked patrolled at once, so a name
    whose edit is not patrolled counts as a newcomer's.
    """
    user = event.get("user")
    if event.get("bot") is True:
        return "bot"
    if not isinstance(user, str) or not user:
        return "unknown"
    if _TEMPORARY.match(user) or _is_address(user):
        return "temporary_account"
    return "autoconfirmed" if event.get("patrolled") is True else "newcomer"


def _is_address(user: str) -> bool:
    try:
        ip_address(user[:50])
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- summaries


@dataclass(frozen=True, slots=True)
class Summary:
    """A Wikibase summary: message key, linked properties, what the value seems to be, and what to do about the edit.

    `text` is rebuilt from the machine's part alone: names of users stand in arguments of `undo` and in free text.
    """

    key: str
    action: Action
    why: str
    properties: tuple[str, ...] = ()
    value_hint: str = ""
    text: str = ""


def read_summary(comment: str) -> Summary:
    """What a summary says; free text without a key means any change."""
    match = _SUMMARY.match(comment[:MAX_COMMENT_CHARS])
    if match is None:
        return Summary("", "fetch_and_diff", "free_text")
    key, arguments, rest = match[1], (match[2] or "").strip(), match[3]
    action, why = _classify(key)
    link = _PROPERTY.search(rest)
    properties: tuple[str, ...] = ()
    hint, shown = "", ""
    if link is not None and why in ("reference_only", "qualifier_changed", *_OF_STATEMENT):
        properties = tuple(dict.fromkeys(_PROPERTY.findall(rest)))
        shown = f" [[Property:{link[1]}]]"
        if value := _VALUE.match(rest, link.end()):
            hint = value[1] or value[2].split(", ")[0].strip()
            shown += f": [[{value[1]}]]" if value[1] else ""
    return Summary(key, action, why, properties, hint, f"/* {key}{_plain(key, arguments)} */{shown}")


def _plain(key: str, arguments: str) -> str:
    """Counts, language codes and revision ids of the arguments; never the user that an undo or restore names."""
    parts = arguments.split("|")[: 3 if key in ("undo", "restore") else 4]
    kept = [part if re.fullmatch(r"[0-9]{0,19}|[a-z-]{1,20}", part) else "" for part in parts]
    return f":{'|'.join(kept)}" if any(kept) else ""


def _classify(key: str) -> tuple[Action, str]:
    for prefix in _TERMS:
        if key.startswith(prefix):
            return "term_or_sitelink_only", prefix
    for prefix, kind in _KINDS:
        if key.startswith(prefix):
            return ("drop" if kind == "reference_only" else "fetch_and_diff"), kind
    return "fetch_and_diff", key
