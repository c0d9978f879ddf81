"""What SERAC and CNP share: a net that knows what an edit is about, and one behind it that answers, trained in two stages."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from editors.base import Corpus, Prepared, TrainingEdit, Workbench
from editors.model import EditableModel
from editors.nets.episodes import hold_out
from editors.nets.scope import ScopeConfig, train_scope
from editors.nets.stages import Learnt, run_stages

#: Held-out edits whose prompts the second net is tried on.
HELD_EDITS = 100

#: (edits to learn from, edits of other subjects to be tried on, the workbench of the stage) -> tensors and card.
Behind = Callable[[Sequence[TrainingEdit], Sequence[TrainingEdit], Workbench], Learnt]


def prepare_scoped(
    model: EditableModel, corpus: Corpus, config: ScopeConfig, bench: Workbench, *, editor: str, stage: str, behind: Behind
) -> Prepared:
    """Train both nets on the corpus's training edits; the cards tell how they do on held-out subjects.

    Args:
        editor: seeds, with the configuration, which held-out edits are tried.
        stage, behind: the second net's name and its training.

    Raises:
        ValueError: training edits of fewer than two subjects.
    """
    learnt, aside = hold_out(corpus.edits, config.held_share, config.seed)
    tried = random.Random(f"{editor}:{config.seed}").sample(aside, min(len(aside), HELD_EDITS))

    def scope(own: Workbench, _before: Mapping[str, Tensor]) -> Learnt:
        net, card = train_scope(model, corpus.edits, config, own)
        return net.tensors(), card

    def second(own: Workbench, _before: Mapping[str, Tensor]) -> Learnt:
        return behind(learnt, tried, own)

    tensors, cards = run_stages(bench, {"scope": scope, stage: second})
    meta: dict[str, Any] = {"token_layer": config.token_layer, "prompt_layer": config.prompt_layer, **cards}
    return Prepared({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, meta)
