"""Run an editor's preparation once for a base model, configuration and corpus, and keep it on disk."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from editors.base import NOTHING, Corpus, Editor, Prepared, Workbench
from editors.model import EditableModel
from editors.writing import writing
from warehouse.digests import canonical_json, digest_of
from warehouse.whole_files import whole_folder

log = logging.getLogger(__name__)


def preparation_digest(editor: Editor, model: EditableModel, corpus: Corpus) -> str:
    """Cache key: everything that the preparation depends on, never the model's name."""
    return digest_of(editor.card.name, model.base_digest, editor.preparation_key(), corpus.digest)


def preparation_folder(editor: Editor, model: EditableModel, corpus: Corpus, folder: Path) -> Path:
    """Where `prepared_for` keeps it: `prepared.safetensors` and `card.json`, versioned by what it depends on."""
    return folder / editor.card.name / preparation_digest(editor, model, corpus)[:24]


def read_card(home: Path) -> dict[str, Any]:
    """The card of a finished preparation: settings, digests, seconds, and in `meta` its loss curve and held-out success."""
    return json.loads((home / "card.json").read_bytes())


def prepared_for(
    editor: Editor, model: EditableModel, corpus: Corpus, folder: Path, report: Callable[[int, int, str], None] | None = None
) -> Prepared:
    """Load the preparation from `folder`, or make it and keep it there. A damaged or half-written one is made again.

    A kill in the middle loses little: editors that train save their state, and the next call goes on from it.
    """
    if not editor.card.needs_preparation:
        return NOTHING
    home = preparation_folder(editor, model, corpus, folder)
    card_path, tensor_path = home / "card.json", home / "prepared.safetensors"
    if card_path.exists():
        card = json.loads(card_path.read_bytes())
        try:
            prepared = Prepared(load_file(tensor_path), card["meta"])
        except (OSError, SafetensorError):
            prepared = None
        if prepared is not None and prepared.digest == card["digest"]:
            return prepared
        log.warning("preparation %s does not match its digest; making it again", home)
    start = time.perf_counter()
    unfinished = home.with_name(f"{home.name}.unfinished")
    prepared = editor.prepare(model, corpus, Workbench(unfinished, report))
    seconds = round(time.perf_counter() - start, 2)
    card = {
        "editor": editor.card.name,
        "base_digest": model.base_digest,
        "corpus_digest": corpus.digest,
        "config": editor.config.model_dump(mode="json"),
        "digest": prepared.digest,
        "meta": dict(prepared.meta),
        "seconds": seconds,
    }
    # Over what is there: it does not match its digest, or a run in parallel wrote the same content.
    with writing(home), whole_folder(home, over=True) as fresh:
        save_file({k: t.contiguous() for k, t in prepared.tensors.items()}, fresh / tensor_path.name)
        (fresh / card_path.name).write_bytes(canonical_json(card))
    shutil.rmtree(unfinished, ignore_errors=True)
    log.info("prepared %s in %.1f s", editor.card.name, seconds)
    return prepared
