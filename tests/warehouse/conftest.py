"""A store in a folder, and small checkpoints to publish in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.warehouse.small_checkpoint import make_manifest, safetensors_text
from warehouse.checkpoints.directory import DirectoryStore
from warehouse.checkpoints.manifests import checkpoint_files, file_digests, patch_files
from warehouse.records import GateOutcome, Manifest


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[Manifest, dict[str, Path]]]:
    """Manifest and local files of a small checkpoint."""

    def build(
        checkpoint_id: str, parent: str | None = None, verdict: GateOutcome = "promote"
    ) -> tuple[Manifest, dict[str, Path]]:
        model, patch = tmp_path / "work" / checkpoint_id / "hf", tmp_path / "work" / checkpoint_id / "patch"
        for path, text in (
            (model / "config.json", "{}"),
            (model / "model.safetensors", safetensors_text(f"weights of {checkpoint_id}")),
            (model / "tokenizer" / "vocab.json", "{}"),
            (patch / "patch.safetensors", f"update of {checkpoint_id}"),
            (patch / "patch.json", "{}"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        files = {**checkpoint_files(checkpoint_id, model), **patch_files(f"p-{checkpoint_id}", patch)}
        return make_manifest(checkpoint_id, file_digests(files), parent, verdict), files

    return build
