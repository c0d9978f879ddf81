"""Products that have the same bits on every machine, in every order and at every alignment.

A floating-point product changes in its last bits with the instruction set, the number of threads, the number of rows and
where in memory a tensor begins. What a checkpoint's bytes, a digest or a law compares is therefore made here: both factors
are rounded to a grid of `BITS` bits, relative to their row's largest entry, and multiplied in float64. Every product of two
grid values is then an integer of at most 2 (BITS - 1) bits times a power of two that the row and the column share, and a
sum of up to `WIDTH` of them stays within float64's 53 bits: nothing is ever rounded, so no order can show. Splitting
factors for error-free products is due to Ozaki et al. 2012 (Numerical Algorithms 59, 95-118).

Element-wise arithmetic needs none of this: IEEE 754 fixes each single operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from editors.precision import wide_device

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

#: Of a grid value, its sign among them.
BITS = 20
#: Terms whose sum stays exact: 2^38 for a product leave 15 of float64's 53 bits.
WIDTH = 1 << (53 - 2 * (BITS - 1))
#: Rows of a dense update that are held in float64 at once.
ROWS_AT_ONCE = 1024
#: Where a tensor of its own begins; kernels choose their path, and so their last bits, by it.
ALIGNMENT = 64


def on_grid(rows: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """Each row rounded to multiples of 2^-(BITS - 1) of the power of two above its largest entry; float64.

    Rounding again changes nothing. An entry is off by at most half a step, 2^-BITS of that power; one that would round up to
    the power itself is cut to the last step below it, so that the row keeps its grid.
    """
    wide = rows.double()
    largest = wide.abs().amax(-1, keepdim=True) if wide.shape[-1] else wide.new_zeros(*wide.shape[:-1], 1)
    step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - (BITS - 1))
    most = float((1 << (BITS - 1)) - 1)
    return (wide / step).round().clamp(-most, most) * step


def grid_product(left: Float[Tensor, "rows width"], right: Float[Tensor, "columns width"]) -> Float[Tensor, "rows columns"]:
    """`left @ right.T` of two tensors on the grid, float64. Sums longer than `WIDTH` are taken in pieces, in their order."""
    total = left[:, :WIDTH] @ right[:, :WIDTH].t()
    for start in range(WIDTH, left.shape[1], WIDTH):
        total = total + left[:, start : start + WIDTH] @ right[:, start : start + WIDTH].t()
    return total


def exact_dense(left: Float[Tensor, "d_out rank"], right: Float[Tensor, "d_in rank"]) -> Float[Tensor, "d_out d_in"]:
    """`left @ right.T` in the dtype of `left`, from two grids a factor: 39 bits, so fp32 loses nothing that it could hold.

    Args:
        left, right: finite, on one device; devices without float64 get it from the CPU.
    """
    where, dtype = left.device, left.dtype
    if left.shape[1] == 1:
        # Single products: exact as they are.
        return left * right.t()
    left, right = left.to(wide_device(where)), right.to(wide_device(where))
    high_r, low_r = _two_grids(right)
    blocks = []
    for rows in left.split(ROWS_AT_ONCE):
        high, low = _two_grids(rows)
        # What is left out, low times low, lies 38 bits below. The two sums are of single numbers, in a fixed order.
        # In place, which changes no bit: each stands in float64 and is as large as the block.
        total = grid_product(high, low_r)
        total += grid_product(low, high_r)
        total += grid_product(high, high_r)
        blocks.append(total.to(dtype))
    return torch.cat(blocks).to(where)


def exact_rows(states: Float[Tensor, "pairs width"], grid: Float[Tensor, "pairs width"]) -> Float[Tensor, " pairs"]:
    """The product of each row with the row of `grid` beside it, in the dtype of `states`; `grid` lies on the grid.

    The states get two grids, 39 bits: the sums of both are exact, so neither order nor machine can show.
    """
    wide = wide_device(states.device)
    high, low = _two_grids(states.to(wide))
    other = grid.to(wide).double()
    return (_row_sums(high * other) + _row_sums(low * other)).to(states.device, states.dtype)


def _row_sums(products: Tensor) -> Tensor:
    """Sums of at most `WIDTH` terms are exact; longer rows are added piece by piece, in their order."""
    total = products[:, :WIDTH].sum(-1)
    for start in range(WIDTH, products.shape[1], WIDTH):
        total = total + products[:, start : start + WIDTH].sum(-1)
    return total


def aligned(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own, as if it had been made here: one read from a file lies anywhere."""
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _two_grids(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Grid values, and those of what they leave over."""
    high = on_grid(rows)
    return high, on_grid(rows.double() - high)
