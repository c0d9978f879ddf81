"""The warehouse as plain files that anybody can read, with digests that the audit trail vouches for."""

from __future__ import annotations

import json
from pathlib import Path

from warehouse.database.connection import Warehouse
from warehouse.digests import canonical_json, digest_of, sha256_file
from warehouse.errors import Conflict
from warehouse.lineages.audit import AuditEntry, Break

INDEX = "export.json"


def export_tables(wh: Warehouse, folder: Path) -> dict[str, str]:
    """Write every table as JSON lines in the order of its key, and `export.json` with their digests.

    Returns:
        File name -> sha256.

    Raises:
        Conflict: the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise Conflict(f"{folder} is not empty; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}
    for table in sorted(wh.tables()):
        path = folder / f"{table}.jsonl"
        rows = wh.rows(f'SELECT to_json(t)::TEXT AS line FROM "{table}" AS t ORDER BY line')
        path.write_text("".join(row["line"] + "\n" for row in rows), encoding="utf-8")
        digests[path.name] = sha256_file(path)
    (folder / INDEX).write_bytes(canonical_json(digests))
    return digests


def export_digest(digests: dict[str, str]) -> str:
    """What the audit trail keeps of an export."""
    return digest_of(digests)


def check_export(folder: Path, chain: list[AuditEntry]) -> list[Break]:
    """Every file that is changed, missing or too many, and an index that the trail does not know."""
    index = folder / INDEX
    try:
        digests = json.loads(index.read_bytes())
    except (OSError, ValueError) as error:
        return [Break(what=str(index), found=f"it cannot be read: {error}")]
    if not isinstance(digests, dict) or canonical_json(digests) != index.read_bytes():
        return [Break(what=str(index), found="it is not as Errata writes it")]
    known = {e.payload.get("digest") for e in chain if e.kind == "export"}
    breaks = (
        [] if export_digest(digests) in known else [Break(what=str(index), found="the audit trail knows of no such export")]
    )
    there = {p.name for p in folder.iterdir()} - {INDEX}
    breaks += [Break(what=name, found="the export has no such file") for name in sorted(there - set(digests))]
    for name, digest in sorted(digests.items()):
        path = folder / name
        if name not in there or path.is_symlink() or not path.is_file():
            breaks.append(Break(what=name, found="it is missing"))
        elif sha256_file(path) != digest:
            breaks.append(Break(what=name, found="its content does not have its digest"))
    return breaks
