"""Keys and values at the lookup token: what a feed-forward layer reads and writes for a subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.mechanics.contexts import BARE, Contexts, encode_lookups
from editors.mechanics.passes import trace_lookups
from editors.mechanics.settings import LocateEditConfig
from editors.model import EditableModel
from warehouse.records import EditRequest

#: Padded tokens in one pass.
TOKENS_PER_PASS = 8192


@dataclass(frozen=True)
class LookupStates:
    """A module's input and output at the lookup token: (edits, contexts, width), fp32."""

    inputs: Tensor
    outputs: Tensor

    def averaged(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Both averaged over the contexts, (edits, width); a projection is affine, so the averages still correspond."""
        w = weights.to(self.inputs)
        return torch.einsum("ecw,c->ew", self.inputs, w), torch.einsum("ecw,c->ew", self.outputs, w)


def lookup_states(
    model: EditableModel, requests: Sequence[EditRequest], contexts: Contexts, path: str, layer: int
) -> LookupStates:
    """Input and output of the module `path` of `layer` at each request's lookup token in each context.

    Nothing after the lookup token and nothing above the module is computed.

    Raises:
        InvalidRequest: a subject is not in its prompt.
        UnsupportedModel: there is no such layer.
    """
    model.anatomy.module(model.hf, path, layer)
    place = path.format(layer=layer)
    prompts = [text for r in requests for text in contexts.fill(r.prompt)]
    subjects = [r.subject for r in requests for _ in contexts.templates]
    places = [at for r in requests for at in contexts.places(r.prompt, r.subject, model.tokenizer)]
    rows = encode_lookups(model, prompts, subjects, [""] * len(prompts), places=places)
    inputs: list[Tensor] = [torch.empty(0)] * len(rows)
    outputs: list[Tensor] = [torch.empty(0)] * len(rows)
    for chosen, seen in trace_lookups(model, rows, TOKENS_PER_PASS, place, outputs=(place,)):
        last = torch.tensor([rows[i].lookup for i in chosen], device=seen.inputs[place].device)
        every = torch.arange(len(chosen), device=last.device)
        picked_in, picked_out = seen.inputs[place][every, last].float(), seen.outputs[place][every, last].float()
        for number, i in enumerate(chosen):
            inputs[i], outputs[i] = picked_in[number], picked_out[number]
    shape = (len(requests), len(contexts.templates), -1)
    return LookupStates(torch.stack(inputs).view(shape), torch.stack(outputs).view(shape))


def written_keys(
    model: EditableModel, requests: Sequence[EditRequest], contexts: Contexts, layer: int, config: LocateEditConfig
) -> tuple[Tensor, Tensor]:
    """The keys that an update of `layer` must answer, and the projection's output there.

    Returns:
        Keys (edits, forms, d_mlp) and values (edits, d_model). One form, the average, or three (`config.key_forms`);
        the values are averages over the contexts in either case.
    """
    states = lookup_states(model, requests, contexts, model.anatomy.mlp_out, layer)
    keys, values = states.averaged(contexts.weights(config.key_average))
    if config.key_forms == "averaged":
        return keys[:, None], values
    alone = [r.model_copy(update={"prompt": r.subject}) for r in requests]
    first = lookup_states(model, alone, BARE, model.anatomy.mlp_out, layer).inputs[:, 0]
    others = states.inputs[:, 1:].mean(1) if states.inputs.shape[1] > 1 else keys
    return torch.stack([states.inputs[:, 0], others, first], dim=1), values
