"""Checkpoints by the names that people use: `base`, `production`, a channel, a checkpoint id or the start of one."""

from __future__ import annotations

from tasks.serving.models import head_manifest
from tasks.settings import Settings
from tasks.workspace import store_of, warehouse
from warehouse.checkpoints.manifests import read_manifest, read_pointer
from warehouse.errors import NotFound
from warehouse.lineages.chain import checkpoint, checkpoints, lineages
from warehouse.records import Checkpoint

#: Fewer characters would name a checkpoint by accident.
SHORTEST_PREFIX = 6


def find_checkpoint(settings: Settings, name: str = "production") -> Checkpoint | None:
    """The checkpoint of that name; None is the bare base model.

    Args:
        name: `base`; `production` (of the configured lineage; the base where nothing was promoted yet); a channel of the
            store; a checkpoint id, whole or its first characters, promoted or not.

    Raises:
        NotFound: nothing, or more than one checkpoint, has that name.
    """
    if name == "base":
        return None
    store = store_of(settings)
    if name == "production":
        manifest = head_manifest(settings, store)
        return None if manifest is None else manifest.checkpoint
    found = read_pointer(store, name)
    if found is not None:
        return read_manifest(store, found[0].checkpoint_id).checkpoint
    with warehouse(settings) as wh:
        known = {row.checkpoint.checkpoint_id for lineage in lineages(wh) for row in checkpoints(wh, lineage)}
        matching = sorted(i for i in known if len(name) >= SHORTEST_PREFIX and i.startswith(name))
        if len(matching) == 1:
            return checkpoint(wh, matching[0])
    if matching:
        raise NotFound(f"{name!r} begins {len(matching)} checkpoints: {', '.join(i[:16] for i in matching)}; give more of it")
    raise NotFound(
        f"no checkpoint {name!r}; give base, production, a channel, or at least {SHORTEST_PREFIX} characters of an id "
        "that `errata status --json` shows"
    )
