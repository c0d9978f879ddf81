"""Write target values into several layers, lowest first: each takes its share of what is still missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from editors.mechanics.behind import Site, site_path, spread_layers, spread_site
from editors.mechanics.contexts import BARE, Contexts
from editors.mechanics.passes import give_back
from editors.mechanics.settings import LocateEditConfig
from editors.model import EditableModel
from editors.patches.weight import LowRank, Update, WeightPatch
from editors.solvers.solve import check_norm, smallest_form
from editors.targets.keys_values import lookup_states, written_keys
from editors.targets.values import ValueSolution
from warehouse.records import EditRequest

#: (layer, residuals (d_out, keys), keys (d_in, keys), owner (keys,)) -> update; an edit has one key, or one for each form.
LayerSolver = Callable[[int, Tensor, Tensor, Tensor], LowRank]
#: (requests of one group, their targets (edits, d_model), the note of their patch) -> the patch.
GroupWriter = Callable[[Sequence[EditRequest], Tensor, dict[str, Any]], WeightPatch]


def write_groups(
    editor: str, groups: Sequence[Sequence[EditRequest]], targets: Tensor, solution: ValueSolution, write: GroupWriter
) -> list[WeightPatch]:
    """One patch for each group of requests whose targets, row by row, were found together."""
    patches, at = [], 0
    for group in groups:
        part = slice(at, at + len(group))
        at = part.stop
        note = {"editor": editor, "requests": [r.request_id for r in group], "solved": list(map(bool, solution.solved[part]))}
        patches.append(write(group, targets[part], note))
    return patches


def linear_share(remaining: int) -> float:
    """MEMIT: what is missing, over the layers still to come."""
    return 1 / remaining


def square_root_share(remaining: int) -> float:
    """PMET: over the square root of their number."""
    return remaining**-0.5


def spread_over_layers(
    model: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Contexts,
    config: LocateEditConfig,
    targets: Tensor,
    layers: Sequence[int],
    solve: LayerSolver,
    *,
    site: Site | None = None,
    share: Callable[[int], float] = linear_share,
) -> dict[str, Update]:
    """Updates by parameter name, one for each layer; keys and residuals are taken again after every layer.

    Where a norm stands behind the feed-forward, the last layer takes all of it (`mechanics/behind.py`).

    Args:
        targets: (edits, d_model) wanted values at the lookup tokens of the last layer.
        solve: the method's own closed form.
        site: where the values are counted; None: where `spread_site` says.

    Raises:
        EditRefused: a layer's update is refused by its solver or its norm.
    """
    updates: dict[str, Update] = {}
    names = [r.request_id for r in requests]
    path = model.anatomy.mlp_out
    layers, target_path = spread_layers(model, layers), site_path(model, site or spread_site(model))
    with model.scratch():
        for number, layer in enumerate(layers):
            written = written_keys(model, requests, contexts, layer, config)
            now = lookup_states(model, requests, BARE, target_path, layers[-1]).outputs[:, 0]
            remaining = len(layers) - number
            missing = ((targets - now) * share(remaining))[written.owner]
            # A solve takes its factor in fp64 and LAPACK's copy of it.
            give_back(model)
            update = solve(layer, missing.t(), written.keys.t(), written.owner)
            check_norm(update, model.weight(path, layer), config.max_relative_norm, names)
            name = path.format(layer=layer) + ".weight"
            updates[name] = smallest_form(update)
            if remaining > 1:
                model.add_to_weight(name, updates[name].dense())
    return updates
