"""Presets that were found on a model, in a folder of this machine: FOLDER/MODEL_DIGEST/EDITOR.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from warehouse.errors import UsageError
from warehouse.whole_files import write_whole


def learnt_path(folder: Path, model_digest: str, name: str) -> Path:
    """Where the preset of an editor for a model lies."""
    return folder / model_digest / f"{name}.yaml"


def read_learnt(path: Path) -> dict[str, Any]:
    """The numbers of such a preset; none where there is no file.

    Raises:
        UsageError: the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))["values"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no preset ({type(error).__name__}: {error}); remove it, and find it anew with "
            f"`errata prepare --auto {path.stem}`"
        ) from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: `values` is {values!r}, not a table of numbers; remove the file or mend it")
    return values


def write_learnt(path: Path, values: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Keep numbers and how they were found; the file is there whole or not at all."""
    head = (
        f"# Numbers of {path.stem} for the model of digest {path.parent.name}, found by `errata prepare --auto {path.stem}`.\n"
    )
    body = yaml.safe_dump({"values": dict(values), "found": dict(found)}, sort_keys=False, allow_unicode=True, width=120)
    write_whole(path, (head + body).encode())
