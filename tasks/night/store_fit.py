"""Ask a bucket once, before anything is edited for it, whether it keeps the promises that promotion rests on."""

from __future__ import annotations

import json
import logging

from tasks.settings import Settings
from tasks.workspace import store_of
from warehouse.checkpoints.opening import s3_endpoint
from warehouse.checkpoints.store_check import require_fit
from warehouse.whole_files import write_whole

log = logging.getLogger(__name__)
#: Stores of this home that were asked, with the endpoint that answered.
ASKED = "fit-stores.json"


def ensure_fit_store(settings: Settings) -> None:
    """Check the store on first use of it in this home; a folder needs no check.

    Raises:
        StoreUnfit: it ignores or refuses a condition or a checksum; nothing was edited.
        StoreUnavailable: it cannot be reached.
    """
    if not settings.store_url.startswith("s3://"):
        return
    name, path = f"{settings.store_url} {s3_endpoint()}".strip(), settings.home / ASKED
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        asked = []  # a mark that is missing or broken costs one more check
    if isinstance(asked, list) and name in asked:
        return
    require_fit(store_of(settings))
    log.info("%s keeps its conditions", name)
    write_whole(path, json.dumps([*(asked if isinstance(asked, list) else []), name]).encode())
