"""Published and tuned numbers of every editor: one YAML file each, one section per base model.

A section is named by the base's architecture, `model_type-LAYERSxWIDTH` (gpt2-48x1600 is GPT-2 XL), or `default`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from editors.base import Editor
from editors.catalogue import editor_class, names
from editors.errors import UnsupportedModel
from editors.model import EditableModel

HERE = Path(__file__).parent


def model_key(model: EditableModel) -> str:
    """The preset section that a model asks for."""
    anatomy = model.anatomy
    return f"{model.hf.config.model_type}-{anatomy.num_layers(model.hf)}x{anatomy.d_model(model.hf)}"


@cache
def sections(name: str) -> dict[str, dict[str, Any]]:
    """All sections of an editor's preset file; an editor from elsewhere brings them as `Editor.presets`."""
    path = HERE / f"{name}.yaml"
    if path.exists():
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {key: dict(section) for key, section in editor_class(name).presets.items()}


def load_editor(name: str, model: EditableModel, overrides: Mapping[str, Any] | None = None) -> Editor:
    """An editor with the preset for this model, changed by `overrides`.

    Raises:
        UnknownEditor: no such editor.
        UnsupportedModel: no section for the model and no default, and the overrides do not fill the gap.
    """
    cls, known, key = editor_class(name), sections(name), model_key(model)
    values = {**known.get("default", {}), **known.get(key, {}), **(overrides or {})}
    missing = [] if key in known else [f"{n}: no number for this model" for n in cls.per_model if n not in (overrides or {})]
    cause: ValidationError | None = None
    if not missing:
        try:
            return cls(cls.config_class(**values))
        except ValidationError as error:
            missing, cause = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()], error
    have = ", ".join(known) or "no section"
    raise UnsupportedModel(
        f"{name} needs a preset for {key!r} ({', '.join(missing)}); editors/presets/{name}.yaml has {have}; "
        f"{_alternative(name, key)}"
    ) from cause


def _alternative(name: str, key: str) -> str:
    """What else there is for a model that an editor has no numbers for."""
    others = [other for other in names() if other != name and key in sections(other)]
    fitting = (
        f"choose an editor with a preset for {key}: {', '.join(others)}" if others else "`errata editors` lists the others"
    )
    return f"set these numbers as editor.overrides, or {fitting}"
