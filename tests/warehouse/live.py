"""A small world for the live source: items with revisions, edits as events, and a recording of both."""

from __future__ import annotations

import json
from typing import Any

from warehouse.stream.recording import RecordedFrame, Recording, time_of_event

FIRST_REVISION = 1000


def statement(item: str, pid: str, value: str, number: int = 1, **more: Any) -> dict[str, Any]:
    """One statement with an item as its value, as Wikibase writes it."""
    return {
        "mainsnak": {"snaktype": "value", "property": pid, "datatype": "wikibase-item", "datavalue": {
            "type": "wikibase-entityid", "value": {"entity-type": "item", "numeric-id": int(value[1:]), "id": value}}},
        "type": "statement", "id": f"{item}$0000-{pid}-{number}", "rank": "normal", **more,
    }  # fmt: skip


def body(item: str, revision: int, *statements: dict[str, Any], label: str | None = None) -> dict[str, Any]:
    claims: dict[str, list[Any]] = {}
    for one in statements:
        claims.setdefault(one["mainsnak"]["property"], []).append(one)
    text = f"item {item[1:]}" if label is None else label
    labels = {"en": {"language": "en", "value": text}} if text else {}
    return {"type": "item", "id": item, "title": item, "lastrevid": revision, "modified": "2026-10-01T20:00:00Z",
            "labels": labels, "descriptions": {}, "aliases": {}, "claims": claims, "sitelinks": {}}  # fmt: skip


def edit(number: int, item: str, old: int | None, new: int | None, pid: str = "P19", **changes: Any) -> dict[str, Any]:
    """The event of one edit; `number` makes its id and its time."""
    meta = {"id": f"00000000-0000-4000-8000-{number:012}", "dt": f"2026-10-01T22:{number // 60 % 60:02}:{number % 60:02}.250Z",
            "domain": "www.wikidata.org", "stream": "mediawiki.recentchange"}  # fmt: skip
    return {
        "$schema": "/mediawiki/recentchange/1.0.0", "meta": meta, "type": "edit", "namespace": 0, "title": item,
        "wiki": "wikidatawiki", "user": "ExampleUser", "bot": False, "patrolled": True,
        "revision": {"old": old, "new": new}, "comment": f"/* wbsetclaim-update:2||1 */ [[Property:{pid}]]: [[Q5]]", **changes,
    }  # fmt: skip


def frame(event: dict[str, Any] | str, number: int) -> RecordedFrame:
    data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
    return RecordedFrame("message", f'[{{"topic":"t","partition":0,"timestamp":{number}}}]', data, time_of_event(data))


def recording(events: list[dict[str, Any] | str], *bodies: dict[str, Any]) -> Recording:
    found = Recording(frames=[frame(event, number) for number, event in enumerate(events)])
    for one in bodies:
        found.add(one)
    return found


def moving_items(items: int, edits: int, noise: int = 0) -> Recording:
    """`items` items whose birthplace moves `edits` times each, one edit of every item after the other.

    Between two edits stand `noise` events of other wikis. The birthplaces are Q10001, Q10002, ...: items with labels.
    """
    found, number, events = Recording(), 0, []
    for step in range(edits + 1):
        for i in range(items):
            name, revision = f"Q{500 + i}", FIRST_REVISION + step * items + i
            found.add(body(name, revision, statement(name, "P19", f"Q{10001 + step}")))
            if step:
                number += 1
                events.append(edit(number, name, revision - items, revision))
            for _ in range(noise if step else 0):
                number += 1
                events.append(edit(number, "Seite", 1, 2, wiki="dewiki"))
    found.frames = [frame(event, i) for i, event in enumerate(events)]
    found.labels = {f"Q{10001 + step}": f"place {step}" for step in range(edits + 1)}
    return found
