"""The property templates of a warehouse: those of the embedded world, and a user's own file over them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml

from warehouse.database.connection import Warehouse
from warehouse.digests import sha256_file
from warehouse.errors import SourceError
from warehouse.reference.general.world import WORDINGS as GENERAL
from warehouse.reference.general.world import wordings
from warehouse.reference.world import Template, read_templates, templates

_KEY, _SHIPPED_KEY = "user_templates", "reference_files_digest"


def put_templates(wh: Warehouse, path: Path | None, *, general: bool = False) -> int:
    """Let the warehouse state properties as a user's file says; a second call with the same file changes nothing.

    A property of the file replaces the embedded wording of it whole. Without a file the embedded wording is back.

    Args:
        general: state properties in the wordings for general models, where there are some; else as the embedded model learnt.

    Returns:
        The number of properties that can be stated now.

    Raises:
        SourceError: the file is missing or no templates file; the message names the property.
    """
    if path is not None and not path.is_file():
        raise SourceError(f"{path}: no such templates file; set `templates` to an existing one, or leave it out")
    own = {} if path is None else _read(path)
    wanted = templates() | (_general() if general else {}) | own
    # The embedded rows are part of the state: a release that rewords them must not hide the user's.
    shipped = wh.scalar("SELECT value FROM store_meta WHERE key = ?", [_SHIPPED_KEY])
    state = f"{'' if path is None else sha256_file(path)}:{shipped}" + (f":{sha256_file(GENERAL)}" if general else "")
    if wh.scalar("SELECT value FROM store_meta WHERE key = ?", [_KEY]) == state:
        return len(wanted)
    rows = pd.DataFrame(
        {"relation": t.relation, "idx": i, "prompt": prompt, "phrase": t.phrase, "inverse": t.inverse}
        for t in wanted.values()
        for i, prompt in enumerate(t.prompts)
    )
    with wh.transaction():
        wh.execute("DELETE FROM templates")
        wh.append("templates", rows, "error")
        wh.execute("DELETE FROM store_meta WHERE key = ?", [_KEY])
        wh.append("store_meta", [{"key": _KEY, "value": state}])
    return len(wanted)


def _general() -> dict[str, Template]:
    inverse = {relation: known.inverse for relation, known in templates().items()}
    return {w.relation: Template(w.relation, w.phrase, w.statements, inverse.get(w.relation)) for w in wordings().values()}


def _read(path: Path) -> dict[str, Template]:
    try:
        return read_templates(path)
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{path}: no templates file: {error}; expected PROPERTY: {{phrase: ..., prompts: [...]}}, each prompt with {{s}}"
        ) from error


def templates_of(wh: Warehouse) -> dict[str, Template]:
    """The templates that the warehouse holds, by property."""
    found: dict[str, list[dict[str, str | None]]] = {}
    for row in wh.rows("SELECT relation, prompt, phrase, inverse FROM templates ORDER BY relation, idx"):
        found.setdefault(row["relation"], []).append(row)
    return {
        relation: Template(relation, rows[0]["phrase"] or "", tuple(row["prompt"] or "" for row in rows), rows[0]["inverse"])
        for relation, rows in found.items()
    }
