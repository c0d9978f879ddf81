"""A night does not begin on a store that breaks its promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows import nightly
from warehouse.checkpoints.store_check import StoreUnfit


def test_nothing_is_received_or_edited_for_a_store_that_is_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unfit(_: Any) -> None:
        raise StoreUnfit("s3://b cannot be used as a store")

    def reached(*_: Any) -> None:
        raise AssertionError("the night went on")

    monkeypatch.setattr(nightly, "ensure_fit_store", unfit)
    monkeypatch.setattr(nightly, "show_progress", lambda _: None)
    for step in ("reconcile", "ingest", "validate", "edit"):
        monkeypatch.setattr(nightly, step, reached)
    with pytest.raises(StoreUnfit):
        nightly.nightly_refresh.fn(night="night-01", config={"home": str(tmp_path / "home")})
