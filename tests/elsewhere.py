"""A pretend accelerator: memory that only its own kernels may read, as a GPU's, so that devices can be tested without one.

Its tensors are real ones of torch's free device type (PrivateUse1): autograd, views, hooks and `.data` are torch's own. Each
kernel is the CPU's, called on the same memory once it is sure that an accelerator would have taken the operands too:

- a tensor of one dimension or more that lies on the CPU is refused beside one that lies here, where it is no index;
- tensors of two such devices are refused beside each other, as those of two GPUs; `elsewhere(1)` is the second;
- nothing is drawn at random here: what is drawn has to be equal on every device, so it comes from the CPU;
- with `narrow_floats`, no float64 comes to be here, as on Apple's.

What a GPU does otherwise than a CPU by its rounding is not pretended.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "elsewhere"
#: DLPack's numbers; for a device that it does not know torch takes PrivateUse1.
CPU_DEVICE, EXTENSION_DEVICE = 1, 12
#: Operators that take indices from the CPU.
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
DRAWS = {
    "bernoulli", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "multinomial", "native_dropout",
    "normal", "normal_", "poisson", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "random_",
    "randperm", "rrelu_with_noise", "uniform_",
}  # fmt: skip
CPU_KERNEL = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

_narrow = False


class OtherDevice(RuntimeError):
    """An accelerator would have refused this."""


def elsewhere(index: int = 0) -> torch.device:
    """A pretend device; they are set up once a process, and cannot be taken away again."""
    _set_up()
    return torch.device(NAME, index)


@cache
def _set_up() -> None:
    set_up: Any = backend_registration._setup_privateuseone_for_python_backend
    set_up(NAME)
    library = torch.library.Library("_", "IMPL")
    library.fallback(_run, "PrivateUse1")
    own = torch.library.Library("aten", "IMPL")
    own.impl("copy_", _copy, "PrivateUse1")
    own.impl("_copy_from", lambda source, target, non_blocking=False: _copy(target, source), "PrivateUse1")
    own.impl("as_strided", _view, "PrivateUse1")
    own.impl("_thnn_fused_lstm_cell", _lstm_cell, "PrivateUse1")
    own.impl("_thnn_fused_lstm_cell_backward_impl", _lstm_cell_backward, "PrivateUse1")
    _KEPT.extend([library, own])


#: What has been registered goes when its library does.
_KEPT: list[torch.library.Library] = []


def possible() -> bool:
    """Is this torch one that can pretend? A machine with an accelerator of its own has no room for another."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend") and not (
        torch.cuda.is_available() or torch.backends.mps.is_available()
    )


@contextmanager
def at_work(*, narrow_floats: bool = False) -> Iterator[torch.device]:
    """The device, for as long as it is used. Backward passes run in the caller's thread: torch starts one for each device it
    knows of when the first of a process runs, and this one may have come later."""
    global _narrow
    device, before = elsewhere(), _narrow
    _narrow = narrow_floats
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield device
    finally:
        _narrow = before


# ------------------------------------------------------------ memory


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _same_bytes(tensor: Tensor, device_type: int, index: int) -> Tensor:
    """The memory of a tensor as another device's; it is kept alive."""
    capsule = torch._C._to_dlpack(tensor)
    # struct DLTensor { void* data; struct { int32 device_type; int32 device_id; } device; ... }
    device = _pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)
    ctypes.c_int32.from_address(device).value = device_type
    ctypes.c_int32.from_address(device + ctypes.sizeof(ctypes.c_int32)).value = index
    return torch._C._from_dlpack(capsule)


def _here(tensor: Tensor) -> Tensor:
    """The memory of a tensor of the device as a CPU tensor."""
    if not tensor.numel():
        # A kernel may yet give it a size, which memory that is shared cannot get.
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return _same_bytes(tensor, CPU_DEVICE, 0)


def _there(tensor: Tensor, index: int) -> Tensor:
    """The memory of a CPU tensor as a tensor of the device with this index."""
    if _narrow and tensor.dtype == torch.float64:
        raise TypeError(f"{NAME} has no float64")
    if tensor._is_zerotensor():
        # Zeros of forward-mode differentiation have no memory.
        tensor = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return _same_bytes(tensor, EXTENSION_DEVICE, index)


def _is_there(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_cpu


# ------------------------------------------------------------ kernels


def _name(op: Any) -> str:
    if op not in _NAMES:
        _NAMES[op] = op._schema.name.partition("::")[2]
    return _NAMES[op]


#: Of operators, which are asked for it at every call.
_NAMES: dict[Any, str] = {}


def _check(op: Any, args: Sequence[Any]) -> None:
    """Would an accelerator take these operands?"""
    name = _name(op)
    if name in DRAWS:
        raise OtherDevice(f"{op}: what is drawn on a device differs from device to device; draw on the CPU")
    if name in INDEXED and _is_there(args[0]):
        args = [args[0], [index for index in args[1] if _is_there(index)], *args[2:]]
    tensors = [t for arg in args for t in (arg if isinstance(arg, (list, tuple)) else (arg,)) if isinstance(t, Tensor)]
    places = {t.device for t in tensors if t.ndim or _is_there(t)}
    if len(places) > 1:
        shapes = ", ".join(f"{tuple(t.shape)} on {t.device}" for t in tensors)
        raise OtherDevice(f"{op}: operands on different devices: {shapes}")


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operator: the CPU's kernel on the same memory."""
    _check(op, [*args, *kwargs.values()])
    pairs: list[tuple[Tensor, Tensor]] = []
    wanted = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.device) and v.type == NAME]

    def lower(value: Any) -> Any:
        if _is_there(value):
            pairs.append((value, _here(value)))
            return pairs[-1][1]
        if isinstance(value, (list, tuple)):
            return [lower(v) for v in value]
        return torch.device("cpu") if isinstance(value, torch.device) else value

    low_args, low_kwargs = [lower(v) for v in args], {name: lower(v) for name, v in kwargs.items()}
    shapes = [(low.shape, low.stride()) for _, low in pairs]
    result = op(*low_args, **low_kwargs)
    index = (wanted[0] if wanted else pairs[0][0].device).index or 0
    for (own, low), shape in zip(pairs, shapes, strict=True):
        if (low.shape, low.stride()) != shape:
            # An output that has been given its size, or a view in place.
            own.data = _of(own, low) if own.numel() else _there(low, index)

    def lift(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(lift(v) for v in value)
        if not isinstance(value, Tensor):
            return value
        for own, low in pairs:
            if value is low:
                return own
            if value.dtype == own.dtype and value.numel() and _start(low) == _start(value):
                return _of(own, value)
        return _there(value, index)

    return lift(result)


def _start(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _of(own: Tensor, low: Tensor) -> Tensor:
    """A view of `own` that lies in it as `low` lies in its memory."""
    return _view(own, low.shape, low.stride(), own.storage_offset() + low.storage_offset())


def _view(own: Tensor, shape: Sequence[int], stride: Sequence[int], offset: int | None = None) -> Tensor:
    """A view of `own`, in its storage: the CPU's kernel looks at no memory."""
    make: Callable[..., Tensor] = torch.ops.aten.as_strided.default.redispatch
    return make(CPU_KERNEL, own, shape, stride, own.storage_offset() if offset is None else offset)


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """The one operator whose operands may lie on two devices."""
    (_here(target) if _is_there(target) else target).copy_(_here(source) if _is_there(source) else source)
    return target


def _lstm_cell(
    of_input: Tensor, of_hidden: Tensor, cell: Tensor, input_bias: Tensor | None = None, hidden_bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of an LSTM, which accelerators have in one kernel and the CPU has not."""
    raw = of_input + of_hidden
    for bias in (input_bias, hidden_bias):
        raw = raw if bias is None else raw + bias
    into, keep, new, out = raw.chunk(4, 1)
    into, keep, new, out = into.sigmoid(), keep.sigmoid(), new.tanh(), out.sigmoid()
    cell = keep * cell + into * new
    return out * cell.tanh(), cell, torch.cat([into, keep, new, out], 1)


def _lstm_cell_backward(
    grad_hidden: Tensor | None, grad_cell: Tensor | None, before: Tensor, cell: Tensor, gates: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    into, keep, new, out = gates.chunk(4, 1)
    bent = cell.tanh()
    grad_hidden = torch.zeros_like(cell) if grad_hidden is None else grad_hidden
    total = grad_hidden * out * (1 - bent.square()) + (0 if grad_cell is None else grad_cell)
    raw = torch.cat(
        [
            total * new * into * (1 - into),
            total * before * keep * (1 - keep),
            total * into * (1 - new.square()),
            grad_hidden * bent * out * (1 - out),
        ],
        1,
    )
    return raw, total * keep, raw.sum(0) if has_bias else None
