"""The audit chain: every change of an entry, of its order or of what it vouches for is found."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.checkpoints.directory import DirectoryStore
from warehouse.database.connection import MEMORY, Warehouse
from warehouse.errors import Conflict
from warehouse.lineages.audit import (
    GENESIS,
    AuditEntry,
    append,
    chain_id,
    check_chain,
    check_mirror,
    edits_payload,
    entries,
    entry_key,
    mirror,
    read_mirrored,
)


@pytest.fixture
def wh() -> Iterator[Warehouse]:
    with Warehouse.open(MEMORY) as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def chain_of(wh: Warehouse, count: int) -> list[AuditEntry]:
    for number in range(count):
        append(wh, "promotion", f"checkpoint-{number}", actor="tester", payload={"number": number})
    return entries(wh)


def test_the_first_entry_follows_nothing(wh: Warehouse) -> None:
    (first,) = chain_of(wh, 1)
    assert (first.seq, first.previous) == (1, GENESIS)


def test_a_chain_read_back_holds(wh: Warehouse) -> None:
    assert check_chain(chain_of(wh, 5)) == []


def test_the_same_event_again_is_one_entry(wh: Warehouse) -> None:
    for _ in range(3):
        append(wh, "rollback", "main-2", actor="tester", payload={"to": "a"}, reason="a bad night")
    assert len(entries(wh)) == 1


def test_another_reason_is_another_event(wh: Warehouse) -> None:
    append(wh, "rollback", "main-2", actor="tester", payload={"to": "a"}, reason="a bad night")
    append(wh, "rollback", "main-2", actor="tester", payload={"to": "a"}, reason="a worse night")
    assert [e.reason for e in entries(wh)] == ["a bad night", "a worse night"]


@cache
def six_entries() -> tuple[AuditEntry, ...]:
    with Warehouse.open(MEMORY) as wh:
        return tuple(chain_of(wh, 6))


FIELDS = ("kind", "subject", "actor", "reason", "payload", "noted_at", "previous")


@settings(deadline=None)  # the first example opens a warehouse
@given(place=st.integers(0, 5), field=st.sampled_from(FIELDS))
def test_any_changed_field_breaks_the_chain(place: int, field: str) -> None:
    chain = list(six_entries())
    entry = chain[place]
    changed = {
        "kind": "rejection", "subject": "x", "actor": "x", "reason": "x", "payload": {"number": 99},
        "noted_at": entry.noted_at.replace(year=2001), "previous": "f" * 64,
    }[field]  # fmt: skip
    chain[place] = entry.model_copy(update={field: changed})
    assert check_chain(chain)


@settings(deadline=None)
@given(st.permutations(range(6)))
def test_any_other_order_breaks_the_chain(order: list[int]) -> None:
    chain = six_entries()
    assert bool(check_chain([chain[i] for i in order])) == (order != sorted(order))


@pytest.mark.parametrize("place", range(5))
def test_an_entry_left_out_breaks_the_chain(wh: Warehouse, place: int) -> None:
    chain = chain_of(wh, 6)
    assert check_chain(chain[:place] + chain[place + 1 :])


def test_a_rewritten_entry_with_a_fresh_digest_breaks_the_next_link(wh: Warehouse) -> None:
    chain = chain_of(wh, 3)
    forged = chain[1].model_copy(update={"reason": "forged"})
    chain[1] = forged.model_copy(update={"digest": forged.computed_digest()})
    assert [b.what for b in check_chain(chain)] == ["audit entry 3"]


def test_the_store_gets_each_entry_once(wh: Warehouse, store: DirectoryStore) -> None:
    chain_of(wh, 4)
    assert (mirror(wh, store), mirror(wh, store)) == (4, 0)
    assert read_mirrored(store, chain_id(entries(wh))) == entries(wh)
    assert check_mirror(entries(wh), store) == []


def test_a_last_entry_cut_off_in_the_warehouse_shows_in_the_store(wh: Warehouse, store: DirectoryStore) -> None:
    chain = chain_of(wh, 4)
    mirror(wh, store)
    assert check_chain(chain[:-1]) == []
    assert [b.what for b in check_mirror(chain[:-1], store)] == [entry_key(chain_id(chain), 4)]


def test_a_chain_rewritten_in_the_warehouse_is_refused_by_the_store(wh: Warehouse, store: DirectoryStore) -> None:
    chain = chain_of(wh, 3)
    mirror(wh, store)
    wh.execute("UPDATE audit SET reason = 'forged' WHERE seq = 2")
    assert [b.what for b in check_mirror(entries(wh), store)] == [entry_key(chain_id(chain), 2)]
    with pytest.raises(Conflict):
        store.create(entry_key(chain_id(chain), 2), b"{}")


def test_a_changed_edit_has_another_digest(wh: Warehouse) -> None:
    row = {
        "lineage": "main", "edit_id": "e1", "request_id": "r1", "batch_id": "b1", "editor": "ft_m", "config_digest": "c",
        "patch_digest": "p", "applied_at": datetime(2026, 11, 1, tzinfo=UTC), "night": "night-01", "checkpoint_id": None,
        "status": "active", "reason": "", "superseded_in": None, "edit_seq": 1,
    }  # fmt: skip
    wh.append("edits", [row], "error")
    before = edits_payload(wh, "night-01", "main")
    wh.execute("UPDATE edits SET status = 'superseded'")
    assert edits_payload(wh, "night-01", "main") == before
    wh.execute("UPDATE edits SET patch_digest = 'q'")
    assert edits_payload(wh, "night-01", "main") != before
