"""What float16 cannot hold, refused by name, and float64 for what is solved in it, on devices that lack it too."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from editors.errors import EditRefused

#: Kinds of devices without float64.
WITHOUT_FLOAT64 = ("mps",)
#: float16's numbers end there, where bfloat16 and float32 go on.
WIDER = "float16 ends at 65,504: set model.dtype to bfloat16 or float32"


def wide_device(device: torch.device) -> torch.device:
    """Where float64 is to be had for data on `device`: there, or on the CPU."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, on its own device or, where that has none, on the CPU; what is solved from it lies there too."""
    return tensor.to(wide_device(tensor.device), torch.float64)


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
