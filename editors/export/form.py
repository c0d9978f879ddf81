"""How edits stand in a plain model: in which dtype, how sharply, with how much room for more, with biases or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.errors import PatchError, UnsupportedModel
from editors.export.constant import Constant
from editors.model import tensor_bytes
from warehouse.digests import digest_of, digest_of_parts

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: A slot's ramp begins and ends over about 1/c of its width. At 64 its keys stay within float16 (65,504) with room to spare,
#: and what the activation adds there is at most a 200th of the slot's value.
SHARPNESS = 64.0
#: Slots that a layer has room for without a word.
RESERVE = 256
#: Widths are multiples of it: what tensor parallelism and blocks of quantised weights divide.
MULTIPLE = 64
#: What a row that was written before answers to the states that it was made for; it was fitted to 1.
GIVEN_LOW, GIVEN_HIGH = 0.5, 2.0


@dataclass(frozen=True)
class Owner:
    """Who some columns of a feed-forward belong to: a slot has two, a neuron one; `states` (n, d_model) are its own."""

    columns: int
    states: Tensor


@dataclass(frozen=True)
class PlainForm:
    """How edits stand in a plain model.

    Attributes:
        constants: by site (the path of a feed-forward); a gated one holds neurons and slots only with its own.
        given: by site: (columns, d_model) rows of the second projection as a model that was written before has them; they
            take the place of those that `constants` give.
        dtype: of the plain model; None: the model's own.
        sharpness: the `c` that a ReLU neuron is written with as `act(c z) / c` where the activation is smooth; None: not at
            all, so that every neuron is equal.
        reserve: slots that a layer has room for at least, and by which it grows; 0: no more than there are.
        of_before: as releases before 2026-11-29 wrote it: gated feed-forwards with biases, nothing of the base but its
            weights and tokenizer, widths as they come.
    """

    constants: Mapping[str, Constant] = field(default_factory=dict)
    given: Mapping[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    sharpness: float | None = SHARPNESS
    reserve: int = RESERVE
    of_before: bool = False

    def digest(self, dtype: torch.dtype) -> str:
        """Equal where the same model is written to the same tensors.

        Args:
            dtype: the model's own.
        """
        rows = [(f"constant {site}", tensor_bytes(constant.vector)) for site, constant in self.constants.items()]
        rows += [(f"given {site}", tensor_bytes(tensor)) for site, tensor in self.given.items()]
        return digest_of(digest_of_parts(rows), str(self.dtype or dtype), self.sharpness, self.reserve, self.of_before)

    def rows_of(
        self, site: str, owners: Sequence[Owner], dtype: torch.dtype, start: int = 0
    ) -> Float[Tensor, "columns d_model"]:
        """Rows of a gated feed-forward's second projection: each answers 1 where its owner speaks, and nearly so elsewhere.

        Args:
            dtype: that they are rounded to, so that thresholds are folded into what is served.
            start: how many columns of the site stand before these.

        Returns:
            fp32.

        Raises:
            UnsupportedModel: no direction of the site is known, or nothing is constant there.
            PatchError: rows that were given do not answer to the states of their owners.
        """
        if site in self.given:
            return self._given(site, owners, start)
        constant = self.constants.get(site)
        if constant is None:
            raise UnsupportedModel(f"the constant direction of {site} is not known; read it from the base (`read_constants`)")
        if not constant.is_steady:
            raise UnsupportedModel(
                f"nothing is constant at {site}: what should be 1 runs from {constant.low:.2f} to {constant.high:.2f} over 98 "
                "of 100 tokens, so that no threshold can be folded into it; serve with hooks"
            )
        rows = [constant.at(owner.states).to(dtype).float().expand(owner.columns, -1) for owner in owners]
        return torch.cat([constant.vector.new_zeros(0, len(constant.vector)), *rows])

    def _given(self, site: str, owners: Sequence[Owner], start: int) -> Tensor:
        count = sum(owner.columns for owner in owners)
        rows = self.given[site][start : start + count].float()
        if len(rows) != count:
            raise PatchError(f"{site} has {len(self.given[site])} columns, and {start + count} come of its patches")
        at = 0
        for owner in owners:
            answers = owner.states @ rows[at : at + owner.columns].t()
            if not bool(((answers >= GIVEN_LOW) & (answers <= GIVEN_HIGH)).all()):
                raise PatchError(f"columns {start + at} of {site} do not answer where their edit speaks; they were changed")
            at += owner.columns
        return rows


#: That of checkpoints which are to be made again as they were.
OF_BEFORE = PlainForm(sharpness=1e4, reserve=0, of_before=True)


@dataclass(frozen=True)
class Room:
    """The width of a plain model's feed-forward layers.

    Attributes:
        own: the base's width.
        used: columns beside it that hold something, in the layer that has most.
        width: of every layer.
        next_width: that of the model in which one slot more than fits finds its place.
        parameters: of one column.
        layers: how many layers there are.
    """

    own: int
    used: int
    width: int
    next_width: int
    parameters: int
    layers: int

    @property
    def slots_left(self) -> int:
        """Slots that still fit, of two columns each."""
        return (self.width - self.own - self.used) // 2

    @property
    def sentence(self) -> str:
        """For a report: how much room is left, what comes next, and what it costs."""
        reserved = (self.width - self.own) * self.layers * self.parameters
        return (
            f"width {self.width} (the base's {self.own}, {self.used} columns used, room for {self.slots_left} slots more, then "
            f"{self.next_width}); a slot has {2 * self.parameters} parameters, all {self.layers} layers are {reserved} wider"
        )


def room_for(own: int, used: int, *, reserve: int, parameters: int, layers: int, of_before: bool = False) -> Room:
    """The room that a number of columns needs; a function of it and of the reserve alone, so that a lineage keeps its shapes.

    Args:
        own: the base's width.
        used: columns, of the layer that has most.
        reserve: in slots, of two columns each.
        parameters: of one column.
        of_before: as many columns as are used, and no more.
    """

    def width(columns: int) -> int:
        step = 2 * reserve
        wanted = own + (step * max(1, -(-columns // step)) if step else columns)
        return wanted if of_before else -(-wanted // MULTIPLE) * MULTIPLE

    now = width(used)
    return Room(own, used, now, width(now - own + 2), parameters, layers)
