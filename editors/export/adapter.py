"""Write a model's weight updates as a LoRA adapter of peft, which a server can put on and take off the untouched base.

An update `Delta = left @ right.T` is the adapter's `B @ A` with B = left and A = right.T; updates of one weight stand
side by side in the factors, and alpha is the rank, so that peft scales by 1. Servers allocate room by rank and take few of
them, so all modules have one rank of `RANKS`, filled with zeros, which change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from editors.errors import UnsupportedModel
from editors.model import EditableModel
from editors.patches.neurons import NeuronPatch
from editors.patches.slots import SlotPatch
from editors.patches.weight import Dense, LowRank, Sparse, Update, WeightPatch
from warehouse.errors import UsageError

WEIGHTS = "adapter_model.safetensors"
#: What servers accept as an adapter's rank (vLLM's `max_lora_rank`).
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
#: How peft names the base's modules in an adapter.
PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdaptedModule:
    """One projection of an adapter.

    `rank`: of its update, without the zeros that fill it up; `relative_error`: Frobenius norm of what the factors miss, over
    the update's norm.
    """

    module: str
    rank: int
    relative_error: float


def write_adapter(model: EditableModel, folder: Path, *, base: str, max_rank: int | None = None) -> list[AdaptedModule]:
    """Write `adapter_config.json` and `adapter_model.safetensors` of the model's patches; the model stays as it is.

    Args:
        folder: is made where it is missing.
        base: the base model's name, for whoever loads the adapter.
        max_rank: where an update is dense or has a higher rank, keep its largest singular values up to this many.

    Returns:
        One line for each module, in the order of their names.

    Raises:
        UnsupportedModel: a patch that is no change of weights, an update of anything but a projection, a dense update
            without `max_rank`, no update at all, a rank above those of `RANKS`, or a module that the base does not have.
    """
    _only_weights(model)
    updates = _updates(model)
    if not updates:
        raise UnsupportedModel(f"{model.name} wears no weight update, so there is nothing for an adapter to hold")
    factors = {name: _factors(model, name, found, max_rank) for name, found in sorted(updates.items())}
    ranks = {name.removesuffix(".weight"): int(f.left.shape[1]) for name, f in factors.items()}
    rank = served_rank(ranks)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(ranks),
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=model.anatomy.orientation == "in_out",
        inference_mode=True,
    )
    tensors: dict[str, Tensor] = {}
    for name, f in factors.items():
        stem, missing = PREFIX + name.removesuffix(".weight"), rank - f.left.shape[1]
        tensors[f"{stem}.lora_A.weight"] = pad(f.right, (0, missing)).t().contiguous()
        tensors[f"{stem}.lora_B.weight"] = pad(f.left, (0, missing)).contiguous()
    check_modules(model, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return [AdaptedModule(n.removesuffix(".weight"), int(f.left.shape[1]), _miss(updates[n], f)) for n, f in factors.items()]


def check_modules(model: EditableModel, tensors: Mapping[str, Tensor]) -> None:
    """Hold an adapter against the base's own class as transformers builds it, not as it is changed here to be edited.

    Servers skip tensors of modules that they do not know, or refuse the adapter.

    Raises:
        UnsupportedModel: a module that the class does not have, or one of another shape.
    """
    with torch.device("meta"):
        plain = type(model.hf)(deepcopy(model.hf.config))
    shapes = {name: tuple(parameter.shape) for name, parameter in plain.named_parameters()}
    turned = model.anatomy.orientation == "in_out"
    for key, a in tensors.items():
        stem, _, side = key.removesuffix(".weight").rpartition(".lora_")
        if side != "A":
            continue
        name = stem.removeprefix(PREFIX) + ".weight"
        wanted = (tensors[f"{stem}.lora_B.weight"].shape[0], a.shape[1])
        found = shapes.get(name)
        if found is None or wanted != (found[::-1] if turned else found):
            what = f"is {found} there" if found else "it does not have"
            raise UnsupportedModel(
                f"the adapter changes {name} of shape {wanted}, which {what}: a server that runs {type(model.hf).__name__} "
                "would lose the edits; export the whole model with --format hf"
            )


def served_rank(ranks: Mapping[str, int]) -> int:
    """The smallest rank of a server's that holds all modules."""
    name, most = max(ranks.items(), key=lambda item: item[1])
    if most > RANKS[-1]:
        raise UnsupportedModel(
            f"{name} has an update of rank {most}, and servers take adapters up to rank {RANKS[-1]}; give --max-rank N for the "
            "nearest one of rank N, or export the whole model with --format hf"
        )
    return next(rank for rank in RANKS if rank >= most)


def _only_weights(model: EditableModel) -> None:
    """Refuse a model of which an adapter would show only a part, and say which form shows all of it."""
    others = [p for p in model.patches if not isinstance(p, WeightPatch)]
    if not others:
        return
    kinds = sorted({"/".join(filter(None, (p.kind, str(p.meta.get("form", ""))))) for p in others})
    fits = (
        "export it with --format hf, a plain model whose wider feed-forward holds added neurons and slots"
        if all(isinstance(p, (NeuronPatch, SlotPatch)) for p in others)
        else "serve it with its patches (`errata ask`), which hooks and memories need"
    )
    raise UnsupportedModel(
        f"{len(others)} of {len(model.patches)} patches of {model.name} are no change of weights ({', '.join(kinds)}) and an "
        f"adapter would lose them; {fits}"
    )


def _updates(model: EditableModel) -> Mapping[str, list[Update]]:
    found: dict[str, list[Update]] = {}
    for patch in model.patches:
        assert isinstance(patch, WeightPatch)
        for name, update in patch.updates.items():
            module = model.hf.get_submodule(name.rpartition(".")[0])
            if not name.endswith(".weight") or isinstance(module, nn.Embedding) or model.parameter(name).dim() != 2:
                raise UnsupportedModel(
                    f"patch {patch.digest[:12]} changes {name}, which is no projection's weight, and a LoRA adapter holds "
                    "nothing else; export the whole model with --format hf"
                )
            found.setdefault(name, []).append(update)
    return found


def _factors(model: EditableModel, name: str, updates: Sequence[Update], max_rank: int | None) -> LowRank:
    """One pair of factors, fp32: exact where the updates have low rank, the best of `max_rank` where they have not."""
    if max_rank is not None and max_rank < 1:
        raise UsageError(f"max_rank is {max_rank}; give 1 or more")
    exact = [_low_rank(update) for update in updates]
    if any(pair is None for pair in exact):
        if max_rank is None:
            raise UnsupportedModel(
                f"{name} has a dense update, which no adapter of low rank equals; give --max-rank N for the nearest one of "
                "rank N, or export the whole model with --format hf"
            )
        return _nearest(_total(updates), max_rank)
    pairs = [pair for pair in exact if pair is not None]
    rank = sum(pair.left.shape[1] for pair in pairs)
    if max_rank is not None and rank > max_rank:
        return _nearest(_total(updates), max_rank)
    if rank > (full := min(model.parameter(name).shape)):
        # More columns than the weight has would be a larger adapter that says the same.
        return _nearest(_total(updates), full)
    return LowRank(torch.cat([p.left.float() for p in pairs], 1), torch.cat([p.right.float() for p in pairs], 1))


def _low_rank(update: Update) -> LowRank | None:
    """The update as factors, None where they would be no smaller than the update itself."""
    match update:
        case LowRank():
            return update
        case Sparse(index, _, (d_out, d_in)):
            rows = torch.unique(index // d_in)
            if len(rows) * (d_out + d_in) >= d_out * d_in:
                return None
            return LowRank(torch.eye(d_out)[:, rows], update.dense().float()[rows].t())
        case Dense():
            return None


def _total(updates: Sequence[Update]) -> Tensor:
    return torch.stack([u.dense().double() for u in updates]).sum(0)


def _nearest(delta: Tensor, rank: int) -> LowRank:
    """The best approximation of a rank in Frobenius norm (Eckart and Young): the largest singular values, shared evenly."""
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    root = s[:rank].sqrt()
    return LowRank((u[:, :rank] * root).float(), (v[:rank].t() * root).float())


def _miss(updates: Sequence[Update], factors: LowRank) -> float:
    total = _total(updates)
    norm = float(total.norm())
    return float((factors.left.double() @ factors.right.double().t() - total).norm()) / norm if norm else 0.0
