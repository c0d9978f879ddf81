"""Extra feed-forward neurons beside a module: `out + act(h K^T + b) V` at every token, `h` being the module's input.

The neurons of T-Patcher (Huang et al. 2023, arXiv:2301.09785, eq. 3) and of CaliNet (Dong et al. 2022, arXiv:2210.03329,
eq. 2). A patch holds only its own neurons; those of one site and activation stand in one growing matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editors.base import Patch, PatchKind
from editors.errors import PatchError, UnsupportedModel
from editors.model import EditableModel, Undo

if TYPE_CHECKING:
    # A development dependency: shapes are for readers and for tests.
    from jaxtyping import Float

Activation = Callable[[Tensor], Tensor]

#: Activations that a patch may name.
ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "silu": F.silu,
}  # fmt: skip
#: transformers' names for them in a model's configuration.
CONFIG_NAMES = {
    "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu", "swish": "silu",
}  # fmt: skip
#: Where a configuration names it.
CONFIG_ENTRIES = ("activation_function", "hidden_activation", "hidden_act", "activation")


def activation_of(model: EditableModel) -> str:
    """Name, in `ACTIVATIONS`, of the model's own feed-forward activation.

    Raises:
        UnsupportedModel: an activation that is not there.
    """
    config = model.hf.config
    name = str(next((found for entry in CONFIG_ENTRIES if (found := getattr(config, entry, None))), ""))
    if name not in CONFIG_NAMES:
        raise UnsupportedModel(f"{model.name} has the activation {name!r}; neurons know {', '.join(sorted(CONFIG_NAMES))}")
    return CONFIG_NAMES[name]


def neurons_name(site: str, activation: str) -> str:
    """Key of the neurons of a module and activation in `EditableModel.memories`."""
    return f"neurons:{activation}:{site}"


class Neurons:
    """Neurons of one site and activation in preallocated buffers, oldest first."""

    def __init__(self, activation: str, d_in: int, d_out: int, device: torch.device) -> None:
        self.activation = activation
        self._act = ACTIVATIONS[activation]
        self._count = 0
        self._keys = torch.zeros(16, d_in, device=device)
        self._biases = torch.zeros(16, device=device)
        self._values = torch.zeros(16, d_out, device=device)

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> Float[Tensor, "neurons d_in"]:
        return self._keys[: self._count]

    @property
    def biases(self) -> Float[Tensor, " neurons"]:
        return self._biases[: self._count]

    @property
    def values(self) -> Float[Tensor, "neurons d_out"]:
        return self._values[: self._count]

    def append(self, keys: Tensor, biases: Tensor, values: Tensor) -> None:
        needed = self._count + len(keys)
        if needed > len(self._keys):
            # Doubling: ten thousand edits copy the buffers ten times, not ten thousand.
            extra = max(needed, 2 * len(self._keys)) - len(self._keys)
            self._keys, self._biases, self._values = (
                torch.cat([t, t.new_zeros(extra, *t.shape[1:])]) for t in (self._keys, self._biases, self._values)
            )
        self._keys[self._count : needed] = keys
        self._biases[self._count : needed] = biases
        self._values[self._count : needed] = values
        self._count = needed

    def truncate(self, count: int) -> None:
        self._count = count

    def added(self, hidden: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """What the neurons add to the module's output."""
        return self._act(F.linear(hidden.float(), self.keys, self.biases)) @ self.values

    def hook(self, _module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """A forward hook; it acts at every token alike, so it needs no prompt positions."""
        if not self._count:
            return None
        out = output[0] if isinstance(output, tuple) else output
        # Summed in fp32 and rounded once, as updates of weights are.
        changed = (out.float() + self.added(inputs[0])).to(out.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


@final
class NeuronPatch(Patch):
    """New neurons beside the module `site`.

    Attributes:
        start: how many neurons of this site and activation lie below: a patch fits only the model that it was made on.
        queries: (n, d_in) inputs that the neurons were made for, so that later edits can keep silent there; may be empty.
        note: plain facts of the editor.
    """

    kind: ClassVar[PatchKind] = "module"

    def __init__(
        self,
        site: str,
        activation: str,
        start: int,
        keys: Float[Tensor, "new d_in"],
        biases: Float[Tensor, " new"],
        values: Float[Tensor, "new d_out"],
        *,
        queries: Tensor | None = None,
        note: Mapping[str, Any] | None = None,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"no activation {activation!r}; neurons know {', '.join(ACTIVATIONS)}")
        if not len(keys) == len(biases) == len(values):
            raise ValueError(f"{len(keys)} keys, {len(biases)} biases, {len(values)} values")
        self.site, self.activation, self.start = site, activation, start
        queries = keys[:0] if queries is None else queries
        self.keys, self.biases, self.values, self.queries = (
            t.detach().float().cpu().contiguous() for t in (keys, biases, values, queries)
        )
        self.note = dict(note or {})

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"keys": self.keys, "biases": self.biases, "values": self.values, "queries": self.queries}

    @property
    def meta(self) -> Mapping[str, Any]:
        return {
            "form": "neurons",
            "site": self.site,
            "activation": self.activation,
            "start": self.start,
            "note": self.note,
        }

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> NeuronPatch:
        return cls(
            meta["site"],
            meta["activation"],
            meta["start"],
            tensors["keys"],
            tensors["biases"],
            tensors["values"],
            queries=tensors["queries"],
            note=meta["note"],
        )

    def attach(self, model: EditableModel) -> Undo:
        """Append the neurons; the first patch of a site and activation installs the hook.

        Raises:
            PatchError: another number of neurons lies below than at the edit.
        """
        name = neurons_name(self.site, self.activation)
        found: Neurons | None = model.memories.get(name)
        have = 0 if found is None else len(found)
        if have != self.start:
            raise PatchError(
                f"neuron patch for {self.site} was made on {self.start} neurons, the model has {have}; "
                "push the patches in the order of their checkpoint"
            )
        remove: Undo | None = None
        if found is None:
            found = Neurons(self.activation, self.keys.shape[1], self.values.shape[1], model.device)
            model.memories[name] = found
            remove = model.hook(self.site, found.hook, by_token=True)
        neurons = found
        neurons.append(self.keys, self.biases, self.values)

        def undo() -> None:
            neurons.truncate(self.start)
            if remove is not None:
                remove()
                model.memories.pop(name, None)

        return undo


def count_neurons(model: EditableModel, site: str, activation: str) -> int:
    """How many neurons of a site and activation the model wears: the `start` of the next patch."""
    found: Neurons | None = model.memories.get(neurons_name(site, activation))
    return 0 if found is None else len(found)


def neuron_queries(patches: Sequence[Patch], site: str) -> list[Tensor]:
    """Inputs that the neurons of earlier patches at a site were made for, each (n, d_in)."""
    return [p.queries for p in patches if isinstance(p, NeuronPatch) and p.site == site and len(p.queries)]
