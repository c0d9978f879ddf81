"""The entity parser: every form that Wikibase has written survives or is set aside with a reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.warehouse.documents import document, item, snak, statement, when
from warehouse.wikidata.entities import (
    MAX_LABEL_CHARS,
    EntityDocument,
    SetAside,
    current,
    date_of,
    moment_of,
    parse_entities,
    parse_entity,
)

NOW = datetime(2026, 10, 1, tzinfo=UTC)
CAPITAL = statement("Q17$a", "P36", item("Q1490"))


def read(raw: dict[str, Any], asked: str = "") -> EntityDocument:
    found = parse_entity(raw, asked)
    assert isinstance(found, EntityDocument), found
    return found


def aside(raw: Any, asked: str = "") -> SetAside:
    found = parse_entity(raw, asked)
    assert isinstance(found, SetAside), found
    return found


# ---------------------------------------------------------------- shapes of documents


def test_bare_and_wrapped_documents_say_the_same() -> None:
    bare = document("Q17", CAPITAL, label="Japan")
    assert read(bare) == read({"entities": {"Q17": bare}})
    assert read(bare) == parse_entity(json.dumps(bare)) == parse_entity(json.dumps(bare).encode())


def test_an_entity_keeps_id_label_revision_and_time() -> None:
    entity = read(document("Q17", CAPITAL, label="Japan"))
    assert (entity.id, entity.type, entity.label, entity.revision) == ("Q17", "item", "Japan", 10)
    assert entity.modified == datetime(2026, 10, 1, 20, tzinfo=UTC)


def test_empty_maps_given_as_arrays_are_empty() -> None:
    entity = read({"id": "Q17", "labels": [], "aliases": [], "descriptions": [], "claims": [], "sitelinks": []})
    assert (entity.label, entity.aliases, entity.statements, entity.left_out) == ("", (), (), ())


def test_empty_qualifiers_and_references_given_as_arrays_are_empty() -> None:
    entity = read(document("Q17", CAPITAL | {"qualifiers": [], "references": []}))
    assert entity.statements[0].qualifiers == entity.statements[0].references == ()


def test_statements_may_stand_under_their_other_name() -> None:
    raw = document("Q17", CAPITAL)
    raw["statements"] = raw.pop("claims")
    assert len(read(raw).statements) == 1


def test_an_item_without_english_label_survives_without_one() -> None:
    raw = document("Q17", CAPITAL, labels={"ja": {"language": "ja", "value": "日本"}})
    assert (read(raw).label, len(read(raw).statements)) == ("", 1)


def test_the_label_for_all_languages_stands_in_for_the_english_one() -> None:
    assert read(document("Q17", labels={"mul": {"language": "mul", "value": "Japan"}})).label == "Japan"


def test_a_label_over_the_limit_is_left_out_with_a_reason() -> None:
    entity = read(document("Q17", CAPITAL, label="x" * (MAX_LABEL_CHARS + 1)))
    assert entity.label == "" and entity.left_out[0].reason == "long_label"


def test_half_a_surrogate_pair_is_no_label() -> None:
    entity = read(document("Q17", CAPITAL, label="Jap\ud800an"))
    assert entity.label == "" and entity.left_out[0].reason == "malformed_label"


def test_a_document_of_statements_alone_is_named_by_their_ids() -> None:
    assert read({"type": "item", "claims": {"P36": [CAPITAL]}}).id == "Q17"


def test_a_property_document_keeps_its_datatype() -> None:
    entity = read(document("P36", label="capital", datatype="wikibase-item"))
    assert (entity.type, entity.datatype) == ("property", "wikibase-item")


def test_a_redirected_answer_remembers_the_id_that_was_asked_for() -> None:
    entity = read({"entities": {"Q3571994": document("Q3571994")}}, asked="Q16231742")
    assert (entity.id, entity.redirected_from) == ("Q3571994", "Q16231742")


def test_a_batch_answer_maps_the_old_id_of_a_redirect() -> None:
    moved = document("Q2") | {"redirects": {"from": "Q1", "to": "Q2"}}
    found = parse_entities({"entities": {"Q1": moved, "Q3": document("Q3")}})
    assert [(e.id, e.redirected_from) for e in found if isinstance(e, EntityDocument)] == [("Q2", "Q1"), ("Q3", "")]


def test_of_several_entities_the_asked_one_is_read() -> None:
    assert read({"entities": {"Q1": document("Q1"), "Q3": document("Q3")}}, asked="Q3").id == "Q3"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"entities": {"Q5": {"id": "Q5", "missing": ""}}}, "missing"),
        ({"entities": {"Q5": {"id": "Q5", "missing": True}}}, "missing"),
        ({"entity": "Q5", "redirect": "Q6"}, "redirect"),
        ({"type": "lexeme", "id": "L5", "lemmas": {}}, "unsupported_entity"),
        ({"id": "L5-F2", "claims": {}}, "unsupported_entity"),
        ({"type": "mediainfo", "id": "M5", "statements": []}, "unsupported_entity"),
        ({"error": {"code": "maxlag", "info": "Waiting"}}, "not_an_entity"),
        (CAPITAL, "not_an_entity"),
        ({"entities": {}}, "not_an_entity"),
        ({"hello": "world"}, "not_an_entity"),
        ({"entities": 7}, "malformed_entity"),
        ({"entities": {"Q5": 7}}, "malformed_entity"),
        (b"[1, 2]", "malformed_entity"),
        (b'{"id": "Q5"', "undecodable"),
        (b"\xff\xfe", "undecodable"),
        (b"[" * 100_000, "undecodable"),
        ({"entities": {"Q1": document("Q1"), "Q3": document("Q3")}}, "several_entities"),
    ],
)
def test_what_is_no_entity_is_set_aside_with_a_reason(raw: Any, reason: str) -> None:
    found = aside(raw)
    assert found.reason == reason and found.sentence.endswith(".")


def test_a_redirect_names_its_target() -> None:
    found = aside({"entity": "Q5", "redirect": "Q6"})
    assert (found.entity_id, found.target) == ("Q5", "Q6")


def test_a_document_over_the_limit_is_not_decoded() -> None:
    found = parse_entity(b'{"id": "Q5"}' + b" " * 100, max_bytes=50)
    assert isinstance(found, SetAside) and found.reason == "too_large"


# ---------------------------------------------------------------- statements and values


def test_the_old_numeric_form_names_the_same_item() -> None:
    old = statement("Q17$a", "P36", {"value": {"entity-type": "item", "numeric-id": 1490}, "type": "wikibase-entityid"})
    assert read(document("Q17", old)).statements == read(document("Q17", CAPITAL)).statements


@pytest.mark.parametrize("snaktype", ["somevalue", "novalue"])
def test_statements_without_a_value_survive(snaktype: str) -> None:
    entity = read(document("Q17", statement("Q17$a", "P36", None, mainsnak=snak("P36", snaktype=snaktype))))
    assert (entity.statements[0].snak.snaktype, entity.statements[0].snak.value) == (snaktype, None)


def test_a_value_of_a_broken_shape_keeps_its_statement() -> None:
    broken = statement("Q17$a", "P36", {"type": "wikibase-entityid", "value": {"id": "nonsense"}})
    value = read(document("Q17", broken)).statements[0].snak.value
    assert value is not None and value.type == "other"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "no_statement_id"),
        ({"rank": "best"}, "unknown_rank"),
        ({"mainsnak": {"property": "X1", "snaktype": "value"}}, "malformed_statement"),
        ({"qualifiers": {"P580": [{"snaktype": "value"}]}}, "malformed_qualifier"),
    ],
)
def test_a_part_that_cannot_be_read_is_left_out_with_a_reason(change: dict[str, Any], reason: str) -> None:
    entity = read({"id": "Q17", "claims": {"P36": [CAPITAL | change, statement("Q17$b", "P36", item("Q2"))]}})
    assert [left.reason for left in entity.left_out] == [reason]
    assert "Q17$b" in [s.id for s in entity.statements]


def test_a_coordinate_is_the_same_however_many_digits_were_printed() -> None:
    def place(latitude: float) -> Any:
        value = {"type": "globecoordinate", "value": {"latitude": latitude, "longitude": 8.5, "globe": "http://x/Q2"}}
        return read(document("Q17", statement("Q17$a", "P625", value))).statements[0].snak.value

    assert place(52.016666666667) == place(52.016666666666666)
    assert place(52.0167) != place(52.0166)


def test_years_padded_to_eleven_digits_are_the_same_years() -> None:
    old, new = (
        read(document("Q17", statement("Q17$a", "P571", when(time)))).statements[0]
        for time in ("+00000001952-03-11T00:00:00Z", "+1952-03-11T00:00:00Z")
    )
    assert old == new


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("+1952-03-11T00:00:00Z", datetime(1952, 3, 11, tzinfo=UTC)),
        ("+1952-00-00T00:00:00Z", datetime(1952, 1, 1, tzinfo=UTC)),
        ("+1952-06-31T00:00:00Z", datetime(1952, 6, 1, tzinfo=UTC)),
        ("-0044-03-15T00:00:00Z", None),
        ("+13798000000-00-00T00:00:00Z", None),
        ("yesterday", None),
    ],
)
def test_times_become_moments_where_a_calendar_has_them(time: str, expected: datetime | None) -> None:
    assert moment_of(time) == expected


def ruled(statement_id: str, qid: str, **more: Any) -> dict[str, Any]:
    return statement(statement_id, "P35", item(qid), **more)


def test_a_preferred_statement_that_ended_gives_way_to_the_open_one() -> None:
    ended = ruled("Q17$a", "Q1", rank="preferred", qualifiers={"P582": when("+2020-01-01T00:00:00Z")})
    entity = read(document("Q17", ended, ruled("Q17$b", "Q2")))
    assert [s.id for s in current(entity.of("P35"), NOW)] == ["Q17$b"]


def test_a_preferred_statement_beats_a_normal_one_and_deprecated_ones_never_hold() -> None:
    rows = [ruled("Q17$a", "Q1"), ruled("Q17$b", "Q2", rank="preferred"), ruled("Q17$c", "Q3", rank="deprecated")]
    entity = read(document("Q17", *rows))
    assert [s.id for s in current(entity.of("P35"), NOW)] == ["Q17$b"]


def test_an_unknown_end_is_an_end_and_no_end_is_none() -> None:
    def ending(snaktype: str) -> bool:
        raw = ruled("Q17$a", "Q1") | {"qualifiers": {"P582": [snak("P582", snaktype=snaktype, datatype="time")]}}
        return read(document("Q17", raw)).statements[0].has_ended(NOW)

    assert ending("somevalue") and not ending("novalue")


def test_what_has_not_begun_does_not_hold_yet() -> None:
    entity = read(document("Q17", ruled("Q17$a", "Q1", qualifiers={"P580": when("+2027-01-01T00:00:00Z")})))
    assert current(entity.of("P35"), NOW) == ()


def test_a_preferred_statement_of_the_future_leaves_the_present_one_in_force() -> None:
    later = ruled("Q17$a", "Q1", rank="preferred", qualifiers={"P580": when("+2027-01-01T00:00:00Z")})
    entity = read(document("Q17", later, ruled("Q17$b", "Q2")))
    assert [s.id for s in current(entity.of("P35"), NOW)] == ["Q17$b"]


def test_an_end_before_our_calendar_is_past() -> None:
    entity = read(document("Q17", ruled("Q17$a", "Q1", qualifiers={"P582": when("-0044-03-15T00:00:00Z")})))
    assert entity.statements[0].has_ended(NOW) and entity.statements[0].valid_to is None


@pytest.mark.parametrize(
    ("time", "first"),
    [
        ("+2100-00-00T00:00:00Z/7", (2001, 1, 1)), ("+2000-00-00T00:00:00Z/7", (1901, 1, 1)),
        ("+2050-01-01T00:00:00Z/7", (2001, 1, 1)), ("+2001-00-00T00:00:00Z/7", (2001, 1, 1)),
        ("+2020-00-00T00:00:00Z/8", (2020, 1, 1)), ("+2029-12-31T00:00:00Z/8", (2020, 1, 1)),
        ("+2000-00-00T00:00:00Z/6", (1001, 1, 1)), ("+3000-00-00T00:00:00Z/6", (2001, 1, 1)),
        ("-0044-03-15T00:00:00Z/7", (-100, 1, 1)), ("-0100-00-00T00:00:00Z/7", (-100, 1, 1)),
        ("+2026-07-15T00:00:00Z/9", (2026, 1, 1)), ("+2026-07-15T00:00:00Z/10", (2026, 7, 1)),
        ("+2026-07-15T00:00:00Z/11", (2026, 7, 15)), ("+2026-07-15T00:00:00Z", (2026, 7, 15)),
        ("+2026-00-00T00:00:00Z", (2026, 1, 1)), ("+2026-07-15T00:00:00Z/x", (2026, 7, 15)),
    ],
)  # fmt: skip
def test_a_time_begins_with_the_first_day_that_its_precision_allows(time: str, first: tuple[int, int, int]) -> None:
    assert date_of(time) == first


def test_a_statement_of_this_century_has_begun() -> None:
    time = {"time": "+2100-00-00T00:00:00Z", "precision": 7, "calendarmodel": "http://www.wikidata.org/entity/Q1985727"}
    qualifier = {"snaktype": "value", "property": "P580", "datavalue": {"type": "time", "value": time}}
    raw = {"id": "Q1", "type": "item", "claims": {"P39": [{
        "id": "Q1$A", "rank": "normal", "qualifiers": {"P580": [qualifier]},
        "mainsnak": {"snaktype": "value", "property": "P39", "datavalue": {"type": "wikibase-entityid", "value": {"id": "Q2"}}},
    }]}}  # fmt: skip
    entity = parse_entity(raw)
    assert isinstance(entity, EntityDocument)
    (statement,) = current(entity.statements, datetime(2026, 10, 1, tzinfo=UTC))
    assert statement.valid_from == datetime(2001, 1, 1, tzinfo=UTC)
