"""Published and tuned numbers of every editor: one YAML file each, one section per base model.

A section is named by the base's architecture, `model_type-LAYERSxWIDTH` (gpt2-48x1600 is GPT-2 XL), or `default`. The
section `auto` is what a search starts from on a model that has none (`search_space.py`); what it finds is a preset of this
machine (`learnt.py`), which goes over the sections.
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
from editors.errors import NoPreset, UnsupportedModel
from editors.mechanics.behind import refuse_norm_behind
from editors.model import EditableModel
from editors.presets.learnt import learnt_path, read_learnt
from editors.presets.search_space import SearchSpace, search_space

HERE = Path(__file__).parent
#: The section that is no model's.
AUTO = "auto"


def model_key(model: EditableModel) -> str:
    """The preset section that a model asks for."""
    anatomy = model.anatomy
    return f"{model.hf.config.model_type}-{anatomy.num_layers(model.hf)}x{anatomy.d_model(model.hf)}"


@cache
def _whole(name: str) -> dict[str, dict[str, Any]]:
    """An editor's preset file; an editor from elsewhere brings it as `Editor.presets`."""
    path = HERE / f"{name}.yaml"
    if path.exists():
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {key: dict(section) for key, section in editor_class(name).presets.items()}


def sections(name: str) -> dict[str, dict[str, Any]]:
    """The numbers of an editor by model; `default` holds what is the same for all."""
    return {key: section for key, section in _whole(name).items() if key != AUTO}


def space_of(name: str) -> SearchSpace | None:
    """What a search may choose of an editor; None where its presets say nothing about that."""
    section = _whole(name).get(AUTO)
    return None if section is None else search_space(section)


def fits(name: str, model: EditableModel) -> bool:
    """Does the editor's card admit models of this architecture?"""
    return editor_class(name).card.behind_norm or model.anatomy.mlp_post_norm is None


def refuse_unfit(name: str, model: EditableModel) -> None:
    """Refuse an editor whose card does not.

    Raises:
        UnsupportedModel: with the reason.
    """
    if not fits(name, model):
        refuse_norm_behind(model, editor_class(name).card.name)


def load_editor(
    name: str, model: EditableModel, overrides: Mapping[str, Any] | None = None, learnt: Path | None = None
) -> Editor:
    """An editor with the preset for this model, changed by `overrides`.

    Args:
        learnt: folder of presets that were found on models (`learnt.py`); this model's goes over the sections here.

    Raises:
        UnknownEditor: no such editor.
        NoPreset: nobody has numbers for this model, and the overrides do not fill the gap.
        UnsupportedModel: a number that the editor does not have or cannot use, or a model that its card excludes.
        UsageError: a damaged preset in `learnt`.
    """
    cls, known, key = editor_class(name), sections(name), model_key(model)
    refuse_unfit(name, model)
    found = read_learnt(learnt_path(learnt, model.base_digest, cls.card.name)) if learnt is not None else {}
    given = {**found, **(overrides or {})}
    values = {**known.get("default", {}), **known.get(key, {}), **given}
    missing = [] if key in known else [f"{n}: no number for this model" for n in cls.per_model if n not in given]
    kind, cause = (NoPreset, None) if missing else (UnsupportedModel, None)
    if not missing:
        try:
            return cls(cls.config_class(**values))
        except ValidationError as error:
            missing, cause = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()], error
            if all(e["type"] == "missing" for e in error.errors()):
                kind = NoPreset
    have = ", ".join(known) or "no section"
    raise kind(
        f"{name} needs a preset for {key!r} ({', '.join(missing)}); editors/presets/{name}.yaml has {have}; "
        f"{_alternative(name, key)}"
    ) from cause


def _alternative(name: str, key: str) -> str:
    """What else there is for a model that an editor has no numbers for."""
    others = [other for other in names() if other != name and key in sections(other)]
    fitting = (
        f"choose an editor with a preset for {key}: {', '.join(others)}" if others else "`errata editors` lists the others"
    )
    search = f"find them with `errata prepare --auto {name}`, " if space_of(name) is not None else ""
    return f"{search}set these numbers as editor.overrides, or {fitting}"
