"""Editors for models that nobody has numbers for: enough to measure what an edit costs, not how well it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editors.base import Editor
from editors.errors import NoPreset
from editors.model import EditableModel
from editors.presets import load_editor


def untuned_numbers(depth: int) -> dict[str, dict[str, Any]]:
    """Numbers by editor for a model with `depth` blocks: the places of a preset, early in the model, and plain strengths.

    Every value takes all of its steps: on a random model no loss would stop it.
    """
    middle = depth // 4
    values = {"value_steps": 20, "second_moment_tokens": 4_000, "max_relative_norm": 1e9}
    return {
        "ledger": {
            "layer": middle, "value_steps": 25, "value_lr": 0.5, "bank_tokens": 2_000, "kept_count": 2, "stop_loss": None,
            "stop_margin": 1.5, "clamp_norm": 4.0,
        },
        "r_rome": {"layer": middle, **values},
        "memit": {"layers": list(range(max(0, middle - 2), middle + 1)), **values},
        "ultraedit": {"layers": [middle, middle + 1], "max_relative_norm": 1e9},
        "ft_m": {"layer": middle},
        "lora": {"layers": [middle]},
        "grace": {"layer": middle},
    }  # fmt: skip


def costed_editor(
    name: str, model: EditableModel, overrides: Mapping[str, Any] | None = None, learnt: Path | None = None
) -> tuple[Editor, bool]:
    """The editor with its preset for this model and True, or with untuned numbers and False where there is no preset.

    Raises:
        UnknownEditor: no such editor.
        NoPreset: there are no untuned numbers for it either.
        UnsupportedModel: a number that the editor cannot use on this model.
    """
    try:
        return load_editor(name, model, overrides, learnt), True
    except NoPreset:
        numbers = untuned_numbers(model.anatomy.num_layers(model.hf))
        if name not in numbers:
            raise
        return load_editor(name, model, {**numbers[name], **(overrides or {})}, learnt), False
