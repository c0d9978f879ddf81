"""Keys and values at the lookup token: what a feed-forward layer reads and writes for a subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.mechanics.contexts import BARE, Contexts, encode_lookups
from editors.mechanics.paraphrases import other_forms
from editors.mechanics.passes import trace_lookups
from editors.mechanics.settings import LocateEditConfig
from editors.model import EditableModel
from warehouse.records import EditRequest

#: Padded tokens in one pass.
TOKENS_PER_PASS = 8192


@dataclass(frozen=True)
class LookupStates:
    """A module's input and output at the lookup token: (edits, contexts, width), fp32.

    Attributes:
        alone: (edits,) True where nothing stands before the lookup token of the first context, not even a start token.
    """

    inputs: Tensor
    outputs: Tensor
    alone: Tensor

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
    alone = torch.tensor([row.lookup == 0 for row in rows[:: len(contexts.templates)]])
    return LookupStates(torch.stack(inputs).view(shape), torch.stack(outputs).view(shape), alone)


@dataclass(frozen=True)
class WrittenKeys:
    """The keys that an update of a layer must answer.

    Attributes:
        keys: (keys, d_mlp), those of an edit beside each other.
        owner: (keys,) the edit of each.
        values: (edits, d_model) the projection's output that a change is counted from.
        bare: (edits, d_model) its output in the first context, the bare prompt.
    """

    keys: Tensor
    owner: Tensor
    values: Tensor
    bare: Tensor

    def of(self, edit: int) -> Tensor:
        """(forms, d_mlp) of one edit."""
        return self.keys[self.owner == edit]


def written_keys(
    model: EditableModel, requests: Sequence[EditRequest], contexts: Contexts, layer: int, config: LocateEditConfig
) -> WrittenKeys:
    """One key of each edit, the average over the contexts, or three (`config.key_forms`).

    Where a request is stated in other forms too (`also`), the average is over those and the contexts' average, and of single
    keys each form has one.

    A one-token subject that begins its prompt, with no start token before it, has two keys in the place of the average: a
    token that nothing stands before has a state of its own (often many times longer than any other), and an average that
    holds it answers neither it nor the contexts. Values are averages over the contexts, of such an edit the bare prompt's.
    """
    states = lookup_states(model, requests, contexts, model.anatomy.mlp_out, layer)
    averaged, values = states.averaged(contexts.weights(config.key_average))
    averaged, values, stated = over_forms(model, requests, layer, averaged, values)
    bare, said = states.inputs[:, 0], states.outputs[:, 0]
    several = states.inputs.shape[1] > 1
    others = states.inputs[:, 1:].mean(1) if several else averaged
    alone = states.alone.to(values.device)
    values = torch.where(alone[:, None], said, values)
    if config.key_forms == "each":
        subjects = [r.model_copy(update={"prompt": r.subject}) for r in requests]
        first = lookup_states(model, subjects, BARE, model.anatomy.mlp_out, layer).inputs[:, 0]
        forms = [torch.cat([torch.stack(own), other]) for *own, other in zip(bare, others, first, stated, strict=True)]
    else:
        forms = [
            torch.stack([bare[i], others[i]]) if several and states.alone[i] else averaged[i : i + 1]
            for i in range(len(requests))
        ]
    owner = torch.tensor([i for i, own in enumerate(forms) for _ in own], device=values.device)
    return WrittenKeys(torch.cat(forms), owner, values, said)


def over_forms(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A layer's keys (edits, d_mlp) and values (edits, d_model) averaged over every form that a request is stated in.

    What is handed in is the first form's and counts as one; requests of one form keep theirs.

    Returns:
        Keys, values, and of each request the keys of its other forms (forms, d_mlp).
    """
    stated = [form for request in requests for form in other_forms(request)]
    if not stated:
        return keys, values, [keys[:0]] * len(requests)
    states = lookup_states(model, stated, BARE, model.anatomy.mlp_out, layer)
    counts = [len(r.also) for r in requests]
    others, outputs = states.inputs[:, 0].split(counts), states.outputs[:, 0].split(counts)
    keys = torch.stack([torch.cat([own[None], form]).mean(0) for own, form in zip(keys, others, strict=True)])
    values = torch.stack([torch.cat([own[None], form]).mean(0) for own, form in zip(values, outputs, strict=True)])
    return keys, values, list(others)
