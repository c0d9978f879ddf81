"""Roles of entities: what the shipped file holds and how it is made."""

from __future__ import annotations

import pandas as pd

from warehouse.reference.roles import UNINFORMATIVE, build_roles, read_roles


def test_only_entities_that_are_values_get_roles_and_open_properties_give_none() -> None:
    facts = pd.DataFrame(
        [("Q1", "P22", "Q2"), ("Q2", "P22", "Q3"), ("Q2", "P22", "Q3"), ("Q4", "P31", "Q2")],
        columns=["subject_qid", "property_pid", "object_qid"],
    )
    assert build_roles(facts).values.tolist() == [
        ["Q2", "P22", "object"], ["Q2", "P22", "subject"], ["Q3", "P22", "object"],
    ]  # fmt: skip


def test_the_shipped_roles_are_triples_with_one_unknown_end() -> None:
    roles = read_roles()
    assert list(roles.columns) == ["subject_id", "relation", "object_id"] and len(roles) > 10_000
    assert ((roles["subject_id"] == "") != (roles["object_id"] == "")).all()
    assert not set(roles["relation"]) & UNINFORMATIVE and not roles.duplicated().any()
