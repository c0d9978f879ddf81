"""Events of the change stream: admitted from the cheapest question on, and never more kept than we may."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from warehouse.stream.events import MAX_EVENT_CHARS, Refused, StreamEvent, admits, parse_event, read_summary

EDIT: dict[str, Any] = {
    "$schema": "/mediawiki/recentchange/1.0.0",
    "meta": {"id": "5f0e9d1c-0000-4000-8000-000000000001", "dt": "2026-10-01T22:01:11.381Z", "domain": "www.wikidata.org",
             "uri": "https://www.wikidata.org/wiki/Q42", "stream": "mediawiki.recentchange"},
    "type": "edit", "namespace": 0, "title": "Q42", "wiki": "wikidatawiki", "user": "ExampleUser", "bot": False,
    "patrolled": True, "timestamp": 1790892071, "revision": {"old": 100, "new": 200},
    "comment": "/* wbsetclaim-update:2||1 */ [[Property:P69]]: [[Q691283]]",
}  # fmt: skip


def event(meta: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The edit with other fields; a field given as `...` is left out."""
    merged = {**EDIT, "meta": {**EDIT["meta"], **(meta or {})}, **changes}
    return {name: value for name, value in merged.items() if value is not ...}


def parsed(meta: dict[str, Any] | None = None, **changes: Any) -> StreamEvent:
    found = parse_event(json.dumps(event(meta, **changes)))
    assert isinstance(found, StreamEvent), found
    return found


def test_an_edit_of_an_item_gives_revisions_time_property_and_hint() -> None:
    found = parsed()
    assert (found.action, found.why, found.entity_id, found.rev_old, found.rev_new) == (
        "fetch_and_diff", "statement_set", "Q42", 100, 200,
    )  # fmt: skip
    assert found.happened_at == datetime(2026, 10, 1, 22, 1, 11, 381_000, tzinfo=UTC)
    assert (found.properties, found.value_hint, found.autocomment) == (("P69",), "Q691283", "wbsetclaim-update")


@pytest.mark.parametrize(
    ("changes", "action", "why"),
    [
        ({"meta": {"domain": "canary"}}, "drop", "canary"),
        ({"wiki": "dewiki"}, "drop", "other_wiki"),
        ({"wiki": None, "meta": {"domain": None}}, "drop", "no_wiki"),
        ({"namespace": 120, "title": "Property:P6"}, "drop", "namespace:120"),
        ({"namespace": 146, "title": "Lexeme:L525"}, "drop", "namespace:146"),
        ({"type": "categorize"}, "drop", "type:categorize"),
        ({"type": 5}, "drop", "type:external"),
        ({"type": {"a": 1}}, "drop", "type:unknown"),
        ({"title": "Main_Page"}, "drop", "no_item"),
        ({"type": "log", "log_type": "newusers", "log_action": "create"}, "drop", "log"),
        ({"type": "log", "log_type": "delete", "log_action": "delete"}, "tombstone", "log:delete/delete"),
        ({"type": "log", "log_type": "delete", "log_action": "restore"}, "fetch_and_diff", "log:delete/restore"),
        ({"comment": "/* wbsetreference-set:2| */ [[Property:P10585]]: 96FPN"}, "drop", "reference_only"),
        ({"comment": "/* wbsetclaim-update-references:2||1 */ [[Property:P19]]: [[Q350]]"}, "drop", "reference_only"),
        ({"comment": "/* wbsetlabel-add:1|de */ Favolaschia"}, "term_or_sitelink_only", "wbsetlabel"),
        ({"comment": "/* clientsitelink-update:0|dewiki */"}, "term_or_sitelink_only", "clientsitelink"),
        ({"comment": "/* wbsetclaim-update-rank:1||1 */ [[Property:P6]]: [[Q22]]"}, "fetch_and_diff", "rank_changed"),
        ({"comment": "/* wbsetqualifier-add:1| */ [[Property:P582]]: 2023"}, "fetch_and_diff", "qualifier_changed"),
        ({"comment": "/* wbremoveclaims-remove:1| */ [[Property:P106]]: [[Q1]]"}, "fetch_and_diff", "statement_removed"),
        ({"comment": "/* wbeditentity-update:0| */ import"}, "fetch_and_diff", "wbeditentity-update"),
        ({"comment": "/* wbmergeitems-to:0||Q1 */"}, "fetch_and_diff", "wbmergeitems-to"),
        ({"comment": "reverted by a script"}, "fetch_and_diff", "free_text"),
        ({"comment": None}, "fetch_and_diff", "free_text"),
    ],
)  # fmt: skip
def test_each_kind_of_event_has_its_action_and_reason(changes: dict[str, Any], action: str, why: str) -> None:
    found = parsed(**changes)
    assert (found.action, found.why) == (action, why)


def test_whatever_may_be_missing_may_be_missing() -> None:
    names = ("type", "namespace", "title", "wiki", "user", "bot", "patrolled", "timestamp", "revision", "comment")
    found = parsed({"dt": None, "id": None}, **dict.fromkeys(names, ...))
    assert (found.action, found.entity_id, found.rev_new, found.happened_at) == ("fetch_and_diff", "Q42", None, None)
    assert found.key.startswith("sha256:") and found.editor_class == "unknown"


def test_without_an_id_wiki_and_revision_are_the_key() -> None:
    assert parsed({"id": None}).key == "wikidatawiki:200"
    assert parsed({"id": "x\ny"}).key == "wikidatawiki:200"


def test_a_new_page_has_no_old_revision() -> None:
    assert parsed(type="new", revision={"old": 0, "new": 7}).rev_old is None
    assert parsed(revision={"old": 0, "new": 7}).rev_old is None


@pytest.mark.parametrize(
    ("dt", "timestamp", "expected"),
    [
        ("2024-07-14T04:38:56Z", None, datetime(2024, 7, 14, 4, 38, 56, tzinfo=UTC)),
        ("2024-07-14T06:38:56+02:00", None, datetime(2024, 7, 14, 4, 38, 56, tzinfo=UTC)),
        (None, 1720931936, datetime(2024, 7, 14, 4, 38, 56, tzinfo=UTC)),
        (None, 1720931936500, datetime(2024, 7, 14, 4, 38, 56, 500_000, tzinfo=UTC)),
        (None, 1e300, None),
        ("no time", True, None),
        ("0001-01-01T00:00:00+14:00", 5, None),
    ],
)
def test_times_in_seconds_and_milliseconds_and_broken_ones(dt: Any, timestamp: Any, expected: datetime | None) -> None:
    assert parsed({"dt": dt}, timestamp=timestamp).happened_at == expected


@pytest.mark.parametrize(
    ("user", "bot", "patrolled", "expected"),
    [
        ("ExampleBot", True, True, "bot"),
        ("~2026-12345-67", False, False, "temporary_account"),
        ("2001:db8::1", False, False, "temporary_account"),
        ("192.0.2.7", False, True, "temporary_account"),
        ("ExampleUser", False, True, "autoconfirmed"),
        ("ExampleUser", False, False, "newcomer"),
        (None, None, None, "unknown"),
        (17, "yes", 1, "unknown"),
    ],
)
def test_of_the_user_only_a_class_is_kept(user: Any, bot: Any, patrolled: Any, expected: str) -> None:
    assert parsed(user=user, bot=bot, patrolled=patrolled).editor_class == expected


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("/* undo:0||2400000100|~2026-12345-67 */ said Jane Doe", "/* undo:0||2400000100 */"),
        ("/* restore:0||77|Jane Doe */", "/* restore:0||77 */"),
        ("/* wbcreateclaim:1| */ [[Property:P20]]: [[Q220]], by Jane", "/* wbcreateclaim:1| */ [[Property:P20]]: [[Q220]]"),
        ("/* wbsetclaim-update:2||1 */ [[Property:P569]]: 21 May", "/* wbsetclaim-update:2||1 */ [[Property:P569]]"),
        ("thanks to Jane Doe", ""),
    ],
)  # fmt: skip
def test_the_kept_summary_names_nobody(comment: str, expected: str) -> None:
    assert read_summary(comment).text == expected
    found = parsed(comment=comment)
    assert "Jane" not in repr(found).replace(found.value_hint, "") and "~2026" not in repr(found)


def test_only_the_first_link_and_the_one_behind_it_are_the_edits_own() -> None:
    found = read_summary("/* wbsetclaim-create:2||1 */ [[Property:P26|spouse (P26)]]: [[Q7|somebody]], see [[Q9]]")
    assert (found.properties, found.value_hint) == (("P26",), "Q7")


def test_the_property_filter_lets_through_what_it_cannot_judge() -> None:
    wanted = {"P26"}
    assert admits(parsed(comment="/* wbsetclaim-create:2||1 */ [[Property:P26]]: [[Q7]]"), wanted)
    assert not admits(parsed(comment="/* wbsetclaim-create:2||1 */ [[Property:P69]]: [[Q7]]"), wanted)
    # A qualifier's property says nothing about the statement's; several statements name several.
    assert admits(parsed(comment="/* wbsetqualifier-add:1| */ [[Property:P582]]: 2023"), wanted)
    assert admits(parsed(comment="/* wbremoveclaims:2| */ [[Property:P69]]: [[Q7]], [[Property:P26]]: [[Q8]]"), wanted)
    assert admits(parsed(comment="/* wbeditentity-update:0| */"), wanted)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ('{"broken": ', "undecodable"),
        ("[1, 2]", "not_an_object"),
        ('{"wiki": "wikidatawiki"}', "no_meta"),
        ('{"meta": null}', "no_meta"),
        ("[" * 100_000, "undecodable"),
        ("x" * (MAX_EVENT_CHARS + 1), "too_large"),
        ('{"meta": {"id": "\ud800"}}', "undecodable"),
    ],
)
def test_data_that_is_no_event_is_refused_with_a_reason(data: str, reason: str) -> None:
    found = parse_event(data)
    assert isinstance(found, Refused)
    assert found.reason == reason
