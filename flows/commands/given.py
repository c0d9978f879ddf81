"""Numbers that are given on the command line, over an editor's preset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

from warehouse.errors import UsageError

#: Help of the option that takes them.
HELP = "[EDITOR.]FIELD=VALUE over the preset, VALUE in YAML or JSON; without EDITOR for all that are named. Repeatable."


def numbers_given(items: Sequence[str], editors: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`[EDITOR.]FIELD[.KEY]=VALUE` as fields by editor.

    Raises:
        UsageError: no name or value, a value that is neither YAML nor JSON, or an editor that was not asked for.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in editors}
    for item in items:
        name, equals, text = item.partition("=")
        path = name.strip().split(".")
        if not equals or not all(path):
            raise UsageError(f"--set {item!r}: expected [EDITOR.]FIELD=VALUE")
        chosen: Sequence[str] = editors
        if path[0] in found and len(path) > 1:
            chosen, path = path[:1], path[1:]
        elif len(path) > 1 and path[0] in _known():
            raise UsageError(f"--set {item!r}: {path[0]} is not among the editors asked for ({', '.join(editors)})")
        value = _value(item, text)
        for editor in chosen:
            _put(found[editor], path, value)
    return {editor: fields for editor, fields in found.items() if fields}


def _known() -> Sequence[str]:
    from editors.catalogue import names

    return names()


def _value(item: str, text: str) -> Any:
    try:
        # First: YAML takes 1e-3 for a word.
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--set {item!r}: {reason}; expected [EDITOR.]FIELD=VALUE with a value in YAML or JSON") from error


def _put(fields: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        inner = fields.get(part)
        fields[part] = inner = dict(inner) if isinstance(inner, dict) else {}
        fields = inner
    fields[path[-1]] = value
