"""Property knowledge: constraints out of property documents, tables of a user's own, and what the warehouse then knows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warehouse.database.connection import Warehouse
from warehouse.errors import SourceError
from warehouse.world.facts import seed_world
from warehouse.world.known_names import relation_names, relations_of
from warehouse.world.properties import SHIPPED, PropertyKnowledge, parse_property, put_properties, read_properties


@pytest.fixture(scope="module")
def wh() -> Iterator[Warehouse]:
    with Warehouse.open(":memory:") as opened:
        seed_world(opened)
        yield opened


def snak(pid: str, entity: str) -> dict[str, Any]:
    value = {"entity-type": "property" if entity[0] == "P" else "item", "numeric-id": int(entity[1:]), "id": entity}
    return {"snaktype": "value", "property": pid, "datavalue": {"type": "wikibase-entityid", "value": value}}


def constraint(kind: str, rank: str = "normal", **parameters: list[str]) -> dict[str, Any]:
    qualifiers = {pid: [snak(pid, entity) for entity in entities] for pid, entities in parameters.items()}
    return {"mainsnak": snak("P2302", kind), "type": "statement", "rank": rank, "qualifiers": qualifiers or []}


def document(pid: str, *constraints: dict[str, Any], label: str = "relation") -> dict[str, Any]:
    return {"type": "property", "id": pid, "labels": {"en": {"language": "en", "value": label}},
            "claims": {"P2302": list(constraints)}}  # fmt: skip


def test_constraints_become_knowledge() -> None:
    found = parse_property(document(
        "P900", constraint("Q19474404"), constraint("Q21510855", P2306=["P901"]),
        constraint("Q21503250", P2308=["Q5", "Q43229"], P2309=["Q21503252"]), constraint("Q21510865", P2308=["Q515", "Q999"]),
        constraint("Q21510859", P2305=["Q1", "Q2"]), constraint("Q21510851", P2306=["P580", "P582"]),
    ))  # fmt: skip
    assert found == PropertyKnowledge(
        pid="P900", label="relation", cardinality="single", single_in_practice=True, inverse_pid="P901",
        subject_type="human/organization", value_type="city/Q999", one_of=("Q1", "Q2"), temporal=True,
    )  # fmt: skip


def test_a_symmetric_property_is_its_own_inverse() -> None:
    found = parse_property(document("P900", constraint("Q21510862")))
    assert found.symmetric is True and found.inverse_pid == "P900"


@pytest.mark.parametrize(
    "one", [constraint("Q19474404", rank="deprecated"), constraint("Q19474404", P2316=["Q62026391"]), constraint("Q21502404")]
)
def test_a_deprecated_suggested_or_other_constraint_says_nothing(one: dict[str, Any]) -> None:
    assert parse_property(document("P900", one)) == PropertyKnowledge(pid="P900", label="relation")


def test_a_wrapped_document_and_one_without_constraints_are_read() -> None:
    assert parse_property({"entities": {"P900": document("P900", constraint("Q52060874"))}}).cardinality == "single"
    assert parse_property({"id": "P900", "labels": [], "claims": []}) == PropertyKnowledge(pid="P900")


_KEYS = st.sampled_from(["id", "entities", "claims", "P2302", "mainsnak", "qualifiers", "labels", "en", "rank"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["P2302", "Q19474404", "value"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(raw=_JSON)
def test_any_json_is_a_property_or_a_source_error(raw: Any) -> None:
    for found in (raw, {"id": "P1", "claims": {"P2302": raw}, "labels": raw}):
        with contextlib.suppress(SourceError):
            assert parse_property(found).pid.startswith("P")


# ---------------------------------------------------------------- files


def test_the_shipped_table_is_what_a_seeded_warehouse_knows(wh: Warehouse) -> None:
    before = wh.rows("SELECT * FROM properties ORDER BY pid")
    assert put_properties(wh, None) == len(before) == len(read_properties(SHIPPED))
    assert wh.rows("SELECT * FROM properties ORDER BY pid") == before


def test_a_users_files_lie_over_the_shipped_table_and_come_off_again(wh: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "P26.json").write_text(json.dumps(document("P26", constraint("Q19474404"), label="spouse")))
    (tmp_path / "P21.json").write_text(json.dumps(document("P21", constraint("Q21510859", P2305=["Q6581097", "Q6581072"]))))
    (tmp_path / "own.csv").write_text("pid,label,cardinality,symmetric\nP9000,made up,multi,\nP26,,,false\n")
    known = len(read_properties(SHIPPED))
    assert [put_properties(wh, tmp_path) for _ in range(2)] == [known + 1] * 2
    (spouse,) = wh.rows("SELECT cardinality, \"symmetric\", inverse_pid, value_type FROM properties WHERE pid = 'P26'")
    assert spouse == {"cardinality": "single", "symmetric": False, "inverse_pid": "P26", "value_type": "human"}
    assert wh.scalar("SELECT count(*) FROM property_values WHERE pid = 'P21'") == 2
    assert put_properties(wh, None) == known
    assert wh.scalar("SELECT cardinality FROM properties WHERE pid = 'P26'") == "multi"
    assert wh.scalar("SELECT count(*) FROM property_values") == 0


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.json", "{", "p.json: "), ("p.json", '{"id": "Q5"}', "no property document"),
        ("p.csv", "pid,cardinality\nP19,few\n", "line 2: column 'cardinality'"), ("p.csv", "pid\n19\n", "no property id"),
        ("p.csv", "label\nborn\n", "line 2: column 'pid'"), ("p.csv", "pid,temporal\nP19,maybe\n", "column 'temporal'"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_names_its_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=says):
        read_properties(tmp_path / name)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        read_properties(tmp_path / "none")


def test_ids_of_a_users_table_are_read_in_any_spelling_and_aliases_are_kept(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    table.write_text("pid,label,inverse_pid,one_of,aliases\nProperty:p9001,mascot,wdt:P40,q5|wd:Q6,Team animal|beast\n")
    (known,) = read_properties(table).values()
    assert (known.pid, known.inverse_pid, known.one_of) == ("P9001", "P40", ("Q5", "Q6"))
    with Warehouse.open(":memory:") as wh:
        put_properties(wh, table)
        names = relation_names(wh)
        assert relations_of("team_animal", names) == relations_of("Mascot", names) == {"P9001"}
        assert relations_of("birthplace", names) == {"P19"}
        put_properties(wh, None)
        assert relations_of("team animal", relation_names(wh)) == frozenset()
