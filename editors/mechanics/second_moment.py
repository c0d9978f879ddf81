"""Uncentred second moment E[k k^T] of the keys at several layers, in one pass over a corpus."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from editors.asking.tokens import pad_right
from editors.base import Corpus, Prepared
from editors.mechanics.behind import Site
from editors.mechanics.contexts import Contexts, sample_contexts
from editors.mechanics.passes import length_groups
from editors.mechanics.settings import LocateEditConfig
from editors.mechanics.trace import trace
from editors.model import EditableModel
from editors.precision import wide, wide_device
from editors.views import at_base
from warehouse.errors import UsageError

if TYPE_CHECKING:
    from jaxtyping import Float

TOKENS_PER_PASS = 4096
#: Columns of one product of a second moment: near as fast as one product of all where a matrix is wide.
STRIP = 512
KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True)
class Moments:
    """Averages over generic tokens: second moments (d_mlp, d_mlp) in fp64, and norms of values, by layer."""

    second: Mapping[int, Tensor]
    mlp_norms: Mapping[int, float]
    block_norms: Mapping[int, float]
    tokens: int


class WideFactors(Mapping[KeyT, Tensor]):
    """Cholesky factors as they are used, fp64 on a device, from fp32 ones that stay where they are.

    One that stands alone is held; of several none is, but made when it is asked for: at a width of 14,336 each has 1.6 GB,
    and solvers go from layer to layer, so that the last one would wait for an edit that begins with the first.
    """

    def __init__(self, stored: Mapping[KeyT, Tensor], device: torch.device) -> None:
        self._stored, self._device = stored, device
        self._only: Tensor | None = None

    def __getitem__(self, key: KeyT) -> Tensor:
        stored = self._stored[key]
        if self._only is not None:
            return self._only
        made = stored.to(wide_device(self._device), torch.float64)
        self._only = made if len(self._stored) == 1 else None
        return made

    def __iter__(self) -> Iterator[KeyT]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


@dataclass(frozen=True)
class LocatePreparation:
    """What locate-and-edit methods learn before any edit.

    Attributes:
        contexts: sampled prefixes.
        factors: layer -> lower Cholesky factor (d_mlp, d_mlp), fp64, of the second moment with its ridge; one at a time.
        energies: layer -> mean squared norm of a generic token's key (trace of the second moment).
        mlp_norms, block_norms: layer -> mean norm of the values in the base model.
    """

    contexts: Contexts
    factors: Mapping[int, Tensor]
    energies: Mapping[int, float]
    mlp_norms: Mapping[int, float]
    block_norms: Mapping[int, float]

    def site_norms(self, site: Site) -> Mapping[int, float]:
        """Those of the values at `site`."""
        return self.mlp_norms if site == "mlp" else self.block_norms


def measure_moments(
    model: EditableModel, texts: Sequence[str], layers: Sequence[int], num_tokens: int, seed: int = 0
) -> Moments:
    """Take the moments over the first `num_tokens` tokens of the texts in a seeded order.

    One forward pass serves all layers. Products of a pass are fp32, their sum fp64; an average, not a sum, so that
    published weights of it keep their meaning.

    Raises:
        UnsupportedModel: a layer that the model does not have.
        ValueError: the texts hold no token.
    """
    for layer in layers:
        model.anatomy.module(model.hf, model.anatomy.mlp_out, layer)
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    limit = int(getattr(model.hf.config, "max_position_embeddings", 0)) or TOKENS_PER_PASS
    rows: list[list[int]] = []
    left = num_tokens
    for i in order:
        if left <= 0:
            break
        ids = list(model.tokenizer(texts[i])["input_ids"])[: min(limit, left)]
        if ids:
            rows.append(ids)
            left -= len(ids)
    if not rows:
        raise ValueError("the corpus holds no token; a second moment needs text")
    layers = sorted(layers)
    paths = {layer: model.anatomy.mlp_out.format(layer=layer) for layer in layers}
    blocks = {layer: model.anatomy.block.format(layer=layer) for layer in layers}
    second: dict[int, Tensor] = {}
    mlp_norms, block_norms = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    total = sum(len(r) for r in rows)
    for chosen in length_groups([len(row) for row in rows], TOKENS_PER_PASS):
        ids, mask = pad_right([rows[i] for i in chosen], model.pad_id)
        seen = trace(
            model,
            ids,
            mask,
            inputs=tuple(paths.values()),
            outputs=(*paths.values(), *blocks.values()),
            stop_after=blocks[layers[-1]],
        )
        for layer in layers:
            keys = seen.inputs[paths[layer]]
            real = mask.bool().to(keys.device)
            keys = keys[real].float()
            product = wide(gram(keys))
            second[layer] = second[layer].add_(product) if layer in second else product
            mlp_norms[layer] += seen.outputs[paths[layer]][real].float().norm(dim=1).sum().item() / total
            block_norms[layer] += seen.outputs[blocks[layer]][real].float().norm(dim=1).sum().item() / total
    return Moments({layer: m.div_(total) for layer, m in second.items()}, mlp_norms, block_norms, total)


def gram(keys: Float[Tensor, "tokens d_mlp"]) -> Float[Tensor, "d_mlp d_mlp"]:
    """K^T K in strips of columns: what stands below the diagonal is copied, which spares near half of the products."""
    width = keys.shape[1]
    if width <= STRIP:
        return keys.t() @ keys
    out = keys.new_empty(width, width)
    for start in range(0, width, STRIP):
        stop = min(start + STRIP, width)
        strip = keys[:, start:stop].t() @ keys[:, start:]
        out[start:stop, start:] = strip
        out[stop:, start:stop] = strip[:, stop - start :].t()
    return out


def ridged_factor(second: Tensor, ridge: float) -> Tensor:
    """Lower Cholesky factor of C + ridge * tr(C)/d * I, fp64.

    Raises:
        ValueError: the matrix is not positive definite even so (a NaN in the keys, or a ridge too small).
    """
    size = second.shape[0]
    # float64: the Gram matrix has a condition number near 1e9.
    matrix = second.double().clone()
    matrix.diagonal().add_(ridge * matrix.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise UsageError(f"second moment ({size} x {size}) is not positive definite; raise second_moment_ridge ({ridge})")
    return factor


def prepare_locate(model: EditableModel, corpus: Corpus, layers: tuple[int, ...], config: LocateEditConfig) -> Prepared:
    """Contexts, factors and norms of the base model, as tensors and plain facts that safetensors and JSON can hold."""
    with at_base(model):
        contexts = sample_contexts(model, config.contexts, config.seed)
        moments = measure_moments(model, corpus.texts, layers, config.second_moment_tokens, config.seed)
    tensors = {
        f"factor.{layer}": ridged_factor(m, config.second_moment_ridge).float().cpu() for layer, m in moments.second.items()
    }
    meta = {
        "templates": list(contexts.templates),
        "groups": list(contexts.groups),
        "tokens": moments.tokens,
        "energies": {str(layer): m.trace().item() for layer, m in moments.second.items()},
        "mlp_norms": {str(layer): v for layer, v in moments.mlp_norms.items()},
        "block_norms": {str(layer): v for layer, v in moments.block_norms.items()},
    }
    return Prepared(tensors, meta)


def read_preparation(prepared: Prepared, layers: Sequence[int], device: torch.device) -> LocatePreparation:
    """The preparation as it is used: factors in fp64 on the device, each when it is asked for.

    Raises:
        ValueError: a layer was not prepared; the configuration changed since.
    """
    missing = [layer for layer in layers if f"factor.{layer}" not in prepared.tensors]
    if missing:
        raise ValueError(f"the preparation lacks layers {missing}; it holds {sorted(prepared.tensors)}: prepare again")
    meta = prepared.meta

    def by_layer(name: str) -> dict[int, float]:
        return {int(layer): float(v) for layer, v in meta[name].items()}

    return LocatePreparation(
        Contexts(tuple(meta["templates"]), tuple(meta["groups"])),
        WideFactors({layer: prepared.tensors[f"factor.{layer}"] for layer in layers}, device),
        by_layer("energies"),
        by_layer("mlp_norms"),
        by_layer("block_norms"),
    )


class PreparationReader:
    """Reads a preparation once for as long as an editor is handed the same one: an fp64 factor takes a while to make."""

    def __init__(self) -> None:
        self._last: tuple[Prepared, tuple[int, ...], torch.device, LocatePreparation] | None = None

    def __call__(self, prepared: Prepared, layers: tuple[int, ...], device: torch.device) -> LocatePreparation:
        if self._last is None or self._last[0] is not prepared or self._last[1:3] != (layers, device):
            self._last = (prepared, layers, device, read_preparation(prepared, layers, device))
        return self._last[3]
