"""Run the model once and keep what went into and came out of named modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from editors.architectures.placement import shown_on
from editors.model import EditableModel
from editors.precision import check_range


class _Reached(Exception):
    """Raised in a hook when the last wanted module has run; never leaves `trace`."""


@dataclass(frozen=True)
class Trace:
    """What one pass showed.

    Attributes:
        inputs, outputs: module path -> (rows, tokens, width).
        calls: module path -> its arguments by parameter name.
        final: the base model's last hidden states after the final norm, None if the pass stopped early.
        cache: keys and values of all tokens if they were asked for.
    """

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    calls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    final: Tensor | None = None
    cache: Any = None


def hidden_of(output: Any) -> Tensor:
    """The hidden states of what a block gives out: alone, or first of a tuple (GPT-J, Falcon)."""
    return output[0] if isinstance(output, tuple) else output


def arguments_by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Bind a call to the parameter names of the module's `forward`: GPT-2 passes by place, Llama by name."""
    signature = inspect.signature(module.forward)
    named = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name, {}))
    return named


@torch.no_grad()
def trace(
    model: EditableModel,
    ids: Tensor,
    mask: Tensor,
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    calls: Sequence[str] = (),
    stop_after: str | None = None,
    use_cache: bool = False,
    past: DynamicCache | None = None,
    kept: Callable[[Tensor], Tensor] = lambda states: states,
) -> Trace:
    """One pass over right-padded rows (rows, tokens) with the model as it stands, its patches included.

    Args:
        stop_after: do not run what follows this module.
        use_cache: keep the attention's keys and values.
        past: keys and values of what stands before every row; the rows' own are put behind them.
        kept: what of each input is kept: all of it, or the states that are wanted where many modules would hold too much.

    Raises:
        EditRefused: the model is in float16, and what it computes goes beyond it.
    """
    seen_in: dict[str, Tensor] = {}
    seen_out: dict[str, Tensor] = {}
    seen_calls: dict[str, dict[str, Any]] = {}
    handles = []

    def keep_output(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if path in inputs:
                seen_in[path] = kept(args[0])
            if path in outputs:
                seen_out[path] = hidden_of(output)
            if path == stop_after:
                raise _Reached

        return hook

    def keep_call(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen_calls[path] = arguments_by_name(module, args, kwargs)

        return hook

    watched = {*inputs, *outputs, *([stop_after] if stop_after else [])}
    final = cache = None
    try:
        for path in sorted(watched):
            handles.append(model.hf.get_submodule(path).register_forward_hook(shown_on(model.device, keep_output(path))))
        for path in calls:
            module = model.hf.get_submodule(path)
            handles.append(module.register_forward_pre_hook(keep_call(path), with_kwargs=True))
        device = model.device
        try:
            # Without the configuration, which would have layers with a sliding window forget what lies behind it.
            filled = past if past is not None else DynamicCache() if use_cache else None
            before = past.get_seq_length() if past is not None else 0
            sees = nn.functional.pad(mask, (before, 0), value=1).to(device)
            out = model.hf.base_model(
                input_ids=ids.to(device), attention_mask=sees, past_key_values=filled, use_cache=use_cache
            )
            final, cache = out.last_hidden_state, filled
        except _Reached:
            final = None
    finally:
        for handle in handles:
            handle.remove()
    for seen in (seen_in, seen_out, {} if final is None else {model.anatomy.final_norm: final}):
        check_range(model.name, seen, mask)
    return Trace(seen_in, seen_out, seen_calls, final, cache)
