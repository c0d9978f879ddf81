"""`errata locate --separability`: at which layers slots could tell the warehouse's subjects apart on this model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from editors.analysis.separability import Separated, separability
from editors.ledger.ledger import LedgerConfig
from tasks.serving.corpus import calibration
from tasks.serving.models import base_model, shown_name
from tasks.settings import Settings
from tasks.workspace import warehouse
from warehouse.errors import NotFound
from warehouse.records import Record
from warehouse.world.queries import subjects_beside


class Detector(Record):
    """One kind of detector over the subjects: the share that it separates, and quantiles of its answers.

    `own` and `foreign` are medians; `own_low` and `foreign_high` the worst tenth of the subjects.
    """

    separable: float
    own: float
    own_low: float
    foreign: float
    foreign_high: float


class LayerSeparability(Record):
    """See `editors.analysis.separability.separability`. `key`: mean direction; `filter`: the ledger's."""

    layer: int
    key: Detector
    filter: Detector


class SeparabilityReport(Record):
    """The layers of one base model, asked with the same subjects."""

    model: str
    model_digest: str
    subjects: int
    wordings: int
    layers: tuple[LayerSeparability, ...]

    @property
    def best(self) -> LayerSeparability:
        """The layer whose filters separate most subjects; of equals, the earliest."""
        return max(self.layers, key=lambda found: (found.filter.separable, -found.layer))


def measure_separability(
    settings: Settings,
    *,
    subjects: int = 200,
    layers: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> SeparabilityReport:
    """Ask every layer (or those given) about so many subjects of the warehouse, none of them in the bank.

    Args:
        progress: told (done, total), from before the first pass.

    Raises:
        NotFound: the warehouse has fewer subjects outside the calibration corpus.
        UnsupportedModel: the model has no such layer.
        UsageError: fewer than 2 subjects.
    """
    with warehouse(settings) as wh:
        learnt = calibration(wh)
        labels = subjects_beside(wh, learnt.subjects)
    # A label may name a calibration subject too.
    banked = {edit.request.subject for edit in learnt.corpus.edits}
    free = [label for label in labels if label not in banked]
    if len(free) < subjects:
        raise NotFound(f"the warehouse has {len(free)} subjects outside the calibration corpus; {subjects} were asked for")
    model = base_model(settings)
    chosen = tuple(layers) or tuple(range(model.anatomy.num_layers(model.hf)))
    config = LedgerConfig(layer=chosen[0], seed=settings.seed)
    found = separability(model, learnt.corpus, free[:subjects], config, chosen, progress or (lambda done, total: None))
    return SeparabilityReport(
        model=shown_name(model),
        model_digest=model.base_digest,
        subjects=subjects,
        wordings=config.key_wordings,
        layers=tuple(
            LayerSeparability(layer=layer, key=_detector(found[layer]["key"]), filter=_detector(found[layer]["filter"]))
            for layer in chosen
        ),
    )


def _detector(found: Separated) -> Detector:
    def at(values: Tensor, share: float) -> float:
        return float(values.quantile(share))

    return Detector(
        separable=found.share,
        own=at(found.own, 0.5),
        own_low=at(found.own, 0.1),
        foreign=at(found.foreign, 0.5),
        foreign_high=at(found.foreign, 0.9),
    )
