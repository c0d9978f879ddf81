"""Trust is a sum of public signals that a file weighs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from checks.door.trust import TRUST_FILE, TrustPolicyError, is_untrusted, load_trust, shipped_trust, trust_of
from tests.checks.nights import change, judged, outcomes, small_store
from warehouse.database.connection import Warehouse
from warehouse.world.changes import Change


@pytest.fixture(scope="module")
def store() -> Iterator[Warehouse]:
    with small_store() as opened:
        yield opened


def update(**signals: Any) -> Change:
    return change("r1", "set_value", "Q1", "P19", "Q2", "Q3", **({"references": 0, "patrolled": False} | signals))


@pytest.mark.parametrize(
    ("signals", "untrusted"),
    [
        ({"editor_class": "newcomer"}, True), ({"editor_class": "temporary_account"}, True),
        ({"editor_class": "never heard of"}, True), ({"editor_class": ""}, True),
        ({"editor_class": "newcomer", "patrolled": True}, False), ({"editor_class": "newcomer", "references": 2}, False),
        ({"editor_class": "autoconfirmed"}, False), ({"editor_class": "bot"}, False),
        ({"editor_class": "autoconfirmed", "tags": ("possible vandalism",)}, True),
        ({"editor_class": "bot", "patrolled": True, "references": 3, "tags": ("mw-reverted",)}, True),
    ],
)  # fmt: skip
def test_signals_add_up(signals: dict[str, Any], untrusted: bool) -> None:
    assert is_untrusted(update(**signals), shipped_trust()) is untrusted


def test_many_tags_are_no_vote() -> None:
    one, two = (update(editor_class="bot", tags=tags) for tags in (("possible vandalism",), ("possible vandalism", "x", "y")))
    assert trust_of(one, shipped_trust()) == trust_of(two, shipped_trust())


def test_a_new_fact_that_was_taken_back_later_waits(store: Warehouse) -> None:
    added = change("r1", "add_statement", "Q1", "P20", None, "Q3", tags=("mw-reverted",))
    assert outcomes(judged(store, [added])) == {"r1": ("quarantine", "low_trust")}
    assert outcomes(judged(store, [added], waived={"r1": frozenset({"low_trust"})})) == {"r1": ("accept", "new_fact")}


def test_another_policy_judges_otherwise(store: Warehouse) -> None:
    strict = shipped_trust().model_copy(update={"trusted_from": 10})
    assert outcomes(judged(store, [update(patrolled=True)], trust=strict)) == {"r1": ("quarantine", "low_trust")}


def test_the_policy_names_no_person() -> None:
    text = TRUST_FILE.read_text(encoding="utf-8")
    assert set(yaml.safe_load(text)) == set(shipped_trust().model_dump())


@pytest.mark.parametrize("text", ["", "name: x", "editor_class: {bot: much}"])
def test_a_broken_policy_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trust.yaml"
    path.write_text(text)
    with pytest.raises(TrustPolicyError, match=r"trust\.yaml"):
        load_trust(path)


def test_a_policy_without_a_weight_for_the_unknown_is_refused(tmp_path: Path) -> None:
    document = yaml.safe_load(TRUST_FILE.read_text(encoding="utf-8"))
    del document["editor_class"]["unknown"]
    (tmp_path / "trust.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(TrustPolicyError, match="unknown"):
        load_trust(tmp_path / "trust.yaml")
