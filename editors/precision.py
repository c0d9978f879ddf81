"""What float16 cannot hold, refused by name: its numbers end at 65,504, where bfloat16 and float32 go on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from editors.errors import EditRefused

WIDER = "float16 ends at 65,504: set model.dtype to bfloat16 or float32"


def way_out(dtype: torch.dtype, otherwise: str) -> str:
    """What to do about a number that is not finite in a model of `dtype`; `otherwise` alone where the dtype is not to blame."""
    return f"{WIDER}, or {otherwise}" if dtype == torch.float16 else otherwise


def check_range(name: str, states: Mapping[str, Tensor], mask: Tensor) -> None:
    """Refuse states of a float16 model that went beyond its numbers; those of other dtypes are not looked at.

    Args:
        name: of the model.
        states: what modules read or gave, by their path, in the order in which they ran.
        mask: (rows, tokens) nonzero where there is a token; what padding makes is nobody's number.

    Raises:
        EditRefused: naming the first module.
    """
    for path, found in states.items():
        if found.dtype != torch.float16:
            continue
        if found.ndim == 3 and found.shape[:2] == mask.shape:
            found = found[mask.to(found.device).bool()]
        if not bool(found.isfinite().all()):
            raise EditRefused(f"{name}: states at {path} are not finite in float16; {WIDER}")
