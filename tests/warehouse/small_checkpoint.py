"""The manifest of a small checkpoint, what a store holds, and a store that dies at any step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.stand_ins import Killed
from warehouse.checkpoints.object_store import ObjectStore, Version
from warehouse.records import Checkpoint, EvaluationReport, GateDecision, GateOutcome, Manifest, Score

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def safetensors_text(note: str) -> str:
    """A safetensors file without a tensor; its header's length is small enough to be text."""
    header = json.dumps({"__metadata__": {"note": note}})
    return chr(len(header)) + "\0" * 7 + header


def make_manifest(
    checkpoint_id: str, files: dict[str, str], parent: str | None = None, verdict: GateOutcome = "promote"
) -> Manifest:
    score = Score(metric="success", value=0.97, low=0.93, high=0.99, n=100)
    return Manifest(
        checkpoint=Checkpoint(
            checkpoint_id=checkpoint_id,
            parent=parent,
            base_model="reference",
            base_revision="1",
            base_digest="0" * 64,
            patch_digests=("p-" + checkpoint_id,),
            created_at=NOON,
        ),
        lineage="memit",
        night="night-01",
        editor="memit",
        verdict=verdict,
        report=EvaluationReport(
            report_id=f"r-{checkpoint_id}",
            before=parent or "",
            after=checkpoint_id,
            probe_set_digest="d",
            scores=(score,),
        ),
        decision=GateDecision(
            decision_id=f"d-{checkpoint_id}",
            report_id=f"r-{checkpoint_id}",
            policy_digest="q",
            verdict=verdict,
            results=(),
            decided_at=NOON,
        ),
        files=files,
    )


def content(store: ObjectStore) -> dict[str, str]:
    return {key: store.digest(key) for key in store.list()}


class DyingStore(ObjectStore):
    """Another store whose n-th operation is the last thing this process does, cut off before or after its effect."""

    def __init__(self, inner: ObjectStore, die_at: int | None = None, *, after: bool = False) -> None:
        self.inner, self.url = inner, inner.url
        self.die_at, self.after, self.count = die_at, after, 0

    def _step(self, operation: Callable[[], Any]) -> Any:
        self.count += 1
        dies = self.count == self.die_at
        if dies and not self.after:
            raise Killed
        value = operation()
        if dies:
            raise Killed
        return value

    def create(self, key: str, data: bytes | Path) -> None:
        self._step(lambda: self.inner.create(key, data))

    def stream(self, key: str) -> Iterator[bytes]:
        yield from self._step(lambda: self.inner.stream(key))

    def exists(self, key: str) -> bool:
        return self._step(lambda: self.inner.exists(key))

    def list(self, prefix: str = "") -> Iterator[str]:
        return self._step(lambda: self.inner.list(prefix))

    def read_versioned(self, key: str) -> tuple[bytes, Version]:
        return self._step(lambda: self.inner.read_versioned(key))

    def compare_and_swap(self, key: str, expected: Version | None, data: bytes) -> Version:
        return self._step(lambda: self.inner.compare_and_swap(key, expected, data))
