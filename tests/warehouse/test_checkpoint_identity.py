"""A checkpoint is known by its base and its patches in order, and by nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

from warehouse.records import Checkpoint, base_checkpoint, checkpoint_id

CANDIDATE = Checkpoint(
    checkpoint_id=checkpoint_id("b", ["p1", "p2"]), parent="above", base_model="owner/model", base_revision="r",
    base_digest="b", patch_digests=("p1", "p2"), created_at=datetime(2026, 1, 1, tzinfo=UTC),
)  # fmt: skip


def test_ids_are_those_of_stores_that_exist_already() -> None:
    assert checkpoint_id("b", ["p1", "p2"]) == "e64c06c4e8ff53847a0e1df8a7e77a20feabaf4cedebfc61fe2dc9d71f2205e9"
    assert checkpoint_id("b") == "4e7e47f623064bdf5a64e6a9f58f7970b733f6be01cf6f7f5f4d4959b980d0fd"


def test_the_order_of_patches_counts_and_the_kind_of_sequence_does_not() -> None:
    assert checkpoint_id("b", ("p2", "p1")) != checkpoint_id("b", ("p1", "p2")) == checkpoint_id("b", ["p1", "p2"])


def test_the_base_of_a_checkpoint_is_a_checkpoint_without_parent_and_patches() -> None:
    base = base_checkpoint(CANDIDATE)
    assert (base.checkpoint_id, base.parent, base.patch_digests) == (checkpoint_id("b"), None, ())
    assert (base.base_revision, base.created_at) == (CANDIDATE.base_revision, CANDIDATE.created_at)
    assert base_checkpoint(base) == base
