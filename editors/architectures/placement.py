"""Where the weights lie of a model that does not fit on one device, and how a pass meets them there.

accelerate says which module lies where, and transformers loads it there (`loading.py`). accelerate's own hooks are taken off:
they put weights back over those that an editor has standing in for them, leave what a module shows on the module's device, and
forget what is written to a weight that they have taken away. Ours keep one rule, so that no editor has to know of devices:
*tokens go in, and all that modules and weights show comes out, on one device*, the model's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from transformers import PreTrainedModel

from editors.architectures.anatomy import Anatomy
from editors.exact import aligned

CPU, DISK = torch.device("cpu"), torch.device("meta")
#: Where weights lie but nothing is computed, once the model has an accelerator.
STORES = ("cpu", "meta")


class Placement:
    """Where each weight of a model lies and where it is computed with; of a model on one device, that device and no more.

    Attributes:
        device: where tokens go in and where modules, weights and logits are shown: the embedding's, if that is an accelerator,
            else the first accelerator with weights, else the CPU.
        spread: weights lie elsewhere too.
    """

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy, on_disk: Mapping[str, Tensor]) -> None:
        """Make the modules of a spread model meet their weights.

        Args:
            on_disk: what `without_hooks` gave.
        """
        self._model, self._on_disk = model, on_disk
        first = model.get_submodule(anatomy.embedding)
        devices = [p.device for p in (*first.parameters(), *model.parameters())]
        self.device = next((d for d in devices if d.type not in STORES), CPU)
        self.spread = any(d != self.device for d in devices)
        if self.spread:
            self._meet(anatomy)

    def runs_on(self, module: nn.Module) -> torch.device:
        """Where a module with weights, or one that holds such modules, is computed: on the accelerator that its weights lie
        on; else, and where they lie on several, on the model's device."""
        found = {self._of(tensor) for tensor in (*module.parameters(), *module.buffers())}
        return found.pop() if len(found) == 1 else self.device

    def stored(self, name: str, parameter: Tensor) -> Tensor:
        """The numbers of a parameter, by its full name, where they lie; of one on the disk, read now."""
        if parameter.device != DISK:
            return parameter.data
        return self._read(name, parameter)

    def shown(self, name: str, parameter: Tensor) -> Tensor:
        """The same on the model's device: the live tensor where it lies there, else a copy."""
        return self.stored(name, parameter).to(self.device)

    def resident(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        """The parameter to write to: one on the disk is taken into the CPU's memory, for all modules that share it, to stay."""
        if parameter.device != DISK:
            return parameter
        own = nn.Parameter(self.stored(name, parameter), requires_grad=False)
        for module in self._model.modules():
            for short, held in module._parameters.items():
                if held is parameter:
                    module._parameters[short] = own
        return own

    def _read(self, name: str, parameter: Tensor) -> Tensor:
        return aligned(self._on_disk[name].to(parameter.dtype))

    def _of(self, tensor: Tensor) -> torch.device:
        return self.device if tensor.device.type in STORES else tensor.device

    def _meet(self, anatomy: Anatomy) -> None:
        names = {module: name for name, module in self._model.named_modules()}
        blocks = anatomy.blocks(self._model)
        for module, name in names.items():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            where = self.runs_on(module)
            # A whole block elsewhere: what is between its modules stays there.
            if any(t.device != self.device for t in own) or (module in blocks and where != self.device):
                module.forward = _meeting(module, where, functools.partial(self._brought, name, where))

    def _brought(self, prefix: str, where: torch.device, name: str, tensor: Tensor) -> Tensor:
        # Not `stored`: what an editor has standing in for a weight keeps its gradient.
        return (self._read(f"{prefix}.{name}", tensor) if tensor.device == DISK else tensor).to(where)


def _meeting(module: nn.Module, where: torch.device, brought: Callable[[str, Tensor], Tensor]) -> Callable[..., Any]:
    """The module's `forward`, run on `where` with its weights there; the output goes back to where the input came from."""
    forward = module.forward

    @functools.wraps(forward)
    def meeting(*args: Any, **kwargs: Any) -> Any:
        came_from = next(_tensors((args, kwargs))).device
        with _lent(module, brought):
            output = forward(*_moved(args, where), **_moved(kwargs, where))
        return _moved(output, came_from)

    return meeting


@contextmanager
def _lent(module: nn.Module, brought: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """The module's own weights and buffers where it runs, for as long as it runs."""
    held: tuple[Any, ...] = (module._parameters, module._buffers)
    before = [dict(each) for each in held]
    for each in held:
        each.update({name: brought(name, tensor) for name, tensor in each.items() if tensor is not None})
    try:
        yield
    finally:
        for each, own in zip(held, before, strict=True):
            each.update(own)


def _moved(value: Any, where: torch.device) -> Any:
    """Tensors in arguments and outputs on `where`; a cache is left alone: each block keeps its own part of it."""
    if isinstance(value, Tensor):
        return value.to(where)
    if isinstance(value, tuple):
        return tuple(_moved(v, where) for v in value)
    if isinstance(value, dict):
        return {name: _moved(v, where) for name, v in value.items()}
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def without_hooks(model: PreTrainedModel) -> Mapping[str, Tensor]:
    """Take accelerate's hooks off a model that it has dispatched; the weights stay where its device map put them.

    Returns:
        The weights that were left on the disk, by their full names, each read when it is asked for.
    """
    on_disk: Mapping[str, Tensor] = {}
    found = [module for module in model.modules() if hasattr(module, "_hf_hook")]
    for module in found:
        for hook in getattr(module._hf_hook, "hooks", (module._hf_hook,)):
            # One map for the whole model, behind each module's prefix.
            on_disk = getattr(getattr(hook, "weights_map", None), "dataset", on_disk)
        remove_hook_from_module(module)
        # What it leaves behind would hide the class's own, which `fit_blocks` may yet change.
        vars(module).pop("forward", None)
    if found:
        model.tie_weights()
        # transformers would ask those hooks for weights when it saves the model.
        vars(model).pop("hf_device_map", None)
    return on_disk


def shown_on(device: torch.device, function: Callable[[nn.Module, tuple[Any, ...], Any], Any]) -> Callable[..., Any]:
    """A forward hook that is shown all on `device`, wherever its module lies; what it returns goes back there.

    A hook that returns nothing may have changed what it was shown, so that goes on instead of the output itself.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        came_from = next(_tensors(output)).device
        if came_from == device:
            return function(module, args, output)
        shown = _moved(output, device)
        changed = function(module, _moved(args, device), shown)
        return _moved(shown if changed is None else changed, came_from)

    return hook
