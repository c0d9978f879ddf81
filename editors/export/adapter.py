"""Write a model's weight updates as a LoRA adapter of peft, which a server can put on and take off the untouched base.

An update `Delta = left @ right.T` is the adapter's `B @ A` with B = left and A = right.T; updates of one weight stand
side by side in the factors, and alpha is the rank, so that peft scales by 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from editors.errors import UnsupportedModel
from editors.model import EditableModel
from editors.patches.neurons import NeuronPatch
from editors.patches.slots import SlotPatch
from editors.patches.weight import Dense, LowRank, Sparse, Update, WeightPatch
from warehouse.errors import UsageError

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdaptedModule:
    """One projection of an adapter. `relative_error`: Frobenius norm of what the factors miss, over the update's norm."""

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
            without `max_rank`, or no update at all.
    """
    _only_weights(model)
    updates = _updates(model)
    if not updates:
        raise UnsupportedModel(f"{model.name} wears no weight update, so there is nothing for an adapter to hold")
    factors = {name: _factors(model, name, found, max_rank) for name, found in sorted(updates.items())}
    ranks = {name.removesuffix(".weight"): int(f.left.shape[1]) for name, f in factors.items()}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        target_modules=sorted(ranks),
        rank_pattern=ranks,
        alpha_pattern=ranks,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=model.anatomy.orientation == "in_out",
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {}
    for name, f in factors.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{stem}.lora_A.weight"] = f.right.t().contiguous()
        tensors[f"{stem}.lora_B.weight"] = f.left.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return [AdaptedModule(n.removesuffix(".weight"), int(f.left.shape[1]), _miss(updates[n], f)) for n, f in factors.items()]


def _only_weights(model: EditableModel) -> None:
    """Refuse a model of which an adapter would show only a part, and say which form shows all of it."""
    others = [p for p in model.patches if not isinstance(p, WeightPatch)]
    if not others:
        return
    kinds = sorted({"/".join(filter(None, (p.kind, str(p.meta.get("form", ""))))) for p in others})
    fits = (
        "export it without --peft: `errata export` writes a plain model whose wider feed-forward holds added neurons and slots"
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
                    "nothing else; export the whole model without --peft"
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
                "rank N, or export the whole model without --peft"
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
