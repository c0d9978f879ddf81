"""The digest of a large base is taken once for each version of its files, and remembered in the home."""

from __future__ import annotations

import json
import logging
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from tasks.settings import ModelSettings
from warehouse.digests import digest_of
from warehouse.whole_files import write_whole

log = logging.getLogger(__name__)

FILE = "base-digests.json"
#: Smaller ones are read in a fraction of a second.
WORTH_BYTES = 64 << 20
#: A file that changed so lately may change again within the same tick of the file system's clock.
SETTLED_S = 2.0
_DIGEST = re.compile(r"[0-9a-f]{64}")


def stamp_of(settings: ModelSettings) -> dict[str, Any] | None:
    """What a remembered digest is valid for: every file that the weights and the config come from, and how they are read.

    A file is its path, size, inode and device, when its content changed (mtime) and when anything of it did (ctime), in
    nanoseconds. None: nothing is remembered, because the model is small, runs code of its own, is not on this machine yet,
    or changed within the last two seconds.
    """
    if settings.trust_remote_code:
        return None
    try:
        files = [_facts(path) for path in model_files(settings)]
    except OSError as error:
        log.debug("%s: %s", settings.name, error)
        return None
    newest = max((max(each["mtime_ns"], each["ctime_ns"]) for each in files), default=0)
    if sum(each["size"] for each in files) < WORTH_BYTES or newest > time.time_ns() - SETTLED_S * 1e9:
        return None
    # The config that is digested is what transformers makes of the file.
    read_by = {name: version(name) for name in ("transformers", "torch", "errata")}
    return {"dtype": settings.dtype, "files": files, "read_by": read_by}


def remembered(home: Path, settings: ModelSettings, stamp: dict[str, Any] | None) -> str | None:
    """The digest on record for exactly this stamp; None where there is none, or the record is damaged."""
    if stamp is None:
        return None
    found = _read(home / FILE).get(_key(settings))
    if not isinstance(found, dict) or found.get("stamp") != stamp:
        return None
    digest = found.get("digest")
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None


def remember(home: Path, settings: ModelSettings, stamp: dict[str, Any], digest: str) -> None:
    """Put a digest on record, in place of an earlier one of the same model.

    Of two processes that write at once one record may be lost, and is made again by the next load. A home that is not there
    is not made, and one that cannot be written is left alone.
    """
    if not home.is_dir():
        return
    records = _read(home / FILE) | {_key(settings): {"stamp": stamp, "digest": digest}}
    try:
        write_whole(home / FILE, json.dumps(records, indent=1, sort_keys=True).encode())
    except OSError as error:
        log.warning("the digest of %s is not remembered: %s", settings.name, error)


def _key(settings: ModelSettings) -> str:
    return digest_of(str(Path(settings.name).absolute()), settings.name, settings.revision, settings.dtype)


def model_files(settings: ModelSettings) -> list[Path]:
    """The files that the weights and the config come from: a `.gguf` file, or those of a folder, also of the hub's cache.

    Raises:
        OSError: the model is not on this machine.
    """
    place = Path(settings.name)
    if place.is_file():
        return [place]
    if not place.is_dir():
        found = try_to_load_from_cache(settings.name, "config.json", revision=settings.revision)
        if not isinstance(found, str):
            raise FileNotFoundError(f"{settings.name} is not in the hub's cache")
        place = Path(found).parent
    return sorted(p for p in place.iterdir() if p.suffix in {".safetensors", ".json", ".gguf"})


def _facts(path: Path) -> dict[str, Any]:
    # Of what a link points to: the hub's cache is made of links.
    whole, facts = path.resolve(), path.stat()
    return {
        "path": str(path.absolute()),
        "of": str(whole),
        "size": facts.st_size,
        "mtime_ns": facts.st_mtime_ns,
        "ctime_ns": facts.st_ctime_ns,
        "inode": facts.st_ino,
        "device": facts.st_dev,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s); digests are taken anew", path, error)
        return {}
    return found if isinstance(found, dict) else {}
