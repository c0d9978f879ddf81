"""What a search may choose of an editor, free of any model's scale: the section `auto` of its preset file.

A field has a plain value, or choices in one unit, the first of which is what an unsearched editor gets:

    layer: {depth: [0.13, 0.2, 0.27]}           shares of the model's depth
    layers: {depth: [0.27], stretch: 5}         so many layers up to there, at most half of the model's
    value_lr: {block_step: [0.1, 0.2]}          units that `scales.py` measures on the model
    null_share: {choose: [0.1, 0.3]}            the number itself
    host_overrides: {numbers_of: host}          the numbers of the editor that the field `host` names
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from editors.presets.scales import Scales, Unit

CHOOSE, DEPTH, NUMBERS_OF = "choose", "depth", "numbers_of"
UNITS: tuple[str, ...] = (CHOOSE, DEPTH, *get_args(Unit))

#: Field -> what is chosen for it: a layer's number for layers, else a number in the field's unit.
Choice = Mapping[str, Any]


@dataclass(frozen=True)
class Candidates:
    """Choices of one field. For layers they are shares of the depth until `SearchSpace.fitted`, then numbers of layers.

    Attributes:
        unit: one of `UNITS`.
        stretch: how many layers end at the chosen one; None: the field takes one number and no list.
    """

    unit: str
    values: tuple[Any, ...]
    stretch: int | None = None


@dataclass(frozen=True)
class SearchSpace:
    """Attributes:
    fixed: fields that the search leaves alone, in the configuration's own numbers.
    candidates: fields with choices, in the order in which they are searched.
    hosts: field that takes another editor's numbers -> the field that names this editor.
    """

    fixed: Mapping[str, Any]
    candidates: Mapping[str, Candidates]
    hosts: Mapping[str, str]

    @property
    def is_searched(self) -> bool:
        return any(len(c.values) > 1 for c in self.candidates.values())

    @property
    def first(self) -> dict[str, Any]:
        """What an unsearched editor gets."""
        return {field: c.values[0] for field, c in self.candidates.items()}

    def fitted(self, depth: int, held: Mapping[str, Any]) -> SearchSpace:
        """The space of a model with so many layers, each layer once, without the fields that somebody has set.

        Args:
            held: fields that are set; of layers, the last one is where scales are read.
        """
        found: dict[str, Candidates] = {}
        for field, c in self.candidates.items():
            if c.unit == DEPTH:
                shares = [_last(held[field])] if field in held else [min(int(s * depth + 0.5), depth - 1) for s in c.values]
                found[field] = replace(c, values=tuple(dict.fromkeys(shares)))
            elif field not in held:
                found[field] = c
        return replace(self, fixed={k: v for k, v in self.fixed.items() if k not in held}, candidates=found)

    def numbers(self, choice: Choice, scales: Scales) -> dict[str, Any]:
        """The configuration's own numbers for a choice of the fitted space; those of hosts are not among them."""
        depth = len(scales.layers)
        places = [choice[field] for field, c in self.candidates.items() if c.unit == DEPTH]
        site = places[0] if places else depth // 2
        found = dict(self.fixed)
        for field, c in self.candidates.items():
            value = choice[field]
            if c.unit == DEPTH:
                first = value + 1 - min(c.stretch or 1, max(1, depth // 2))
                found[field] = value if c.stretch is None else list(range(max(0, first), value + 1))
            elif c.unit == CHOOSE:
                found[field] = value
            else:
                # Three digits: scales are medians over a few dozen prompts.
                found[field] = float(f"{value * scales.unit(c.unit, site):.3g}")
        return found


def search_space(section: Mapping[str, Any]) -> SearchSpace:
    """The space that a section `auto` describes.

    Raises:
        ValueError: choices without values, or in a unit that nobody measures.
    """
    fixed: dict[str, Any] = {}
    candidates: dict[str, Candidates] = {}
    hosts: dict[str, str] = {}
    for field, given in section.items():
        if not isinstance(given, Mapping):
            fixed[field] = given
            continue
        rest = dict(given)
        stretch = rest.pop("stretch", None)
        (unit, values), *more = rest.items() or [("", ())]
        if unit == NUMBERS_OF:
            hosts[field] = str(values)
        elif unit in UNITS and values and not more:
            candidates[field] = Candidates(unit, tuple(values), stretch)
        else:
            raise ValueError(f"auto.{field}: {dict(given)}; expected one of {', '.join(UNITS)}")
    return SearchSpace(fixed, candidates, hosts)


def _last(layers: Any) -> int:
    return max(layers) if isinstance(layers, (list, tuple)) else int(layers)
