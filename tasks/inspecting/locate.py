"""Where a fact is recalled in a model: figures and records for people."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from editors.analysis.causal_trace import SITES, CausalTrace, causal_trace
from editors.analysis.lens import lens_ranks
from editors.mechanics.attribution import answer_ids, current_answer, neuron_attributions
from tasks.reporting.svg import HeatMap, heat_maps_svg
from tasks.serving.checkpoints import find_checkpoint
from tasks.serving.models import at_checkpoint
from tasks.settings import Settings
from tasks.workspace import store_of, warehouse
from warehouse.errors import NotFound
from warehouse.records import Record
from warehouse.reference.world import templates
from warehouse.world.queries import one_object_each

log = logging.getLogger(__name__)
#: Facts that the Hit@k shares are taken over: of the same relation, for one fact's rank is an anecdote.
LENS_FACTS = 200
NUM_NEURONS = 20


class Place(Record):
    """A token and a layer, with the share of the answer's probability that restoring it brings back."""

    token: int
    text: str
    layer: int
    effect: float


class Neuron(Record):
    """A feed-forward neuron and its integrated gradient towards the answer, as a share of the largest one."""

    layer: int
    neuron: int
    share: float


class Located(Record):
    """What `errata locate` found. `hits`: layer by layer, Hit@10 and Hit@50 of entity and fact over `lens_facts` facts."""

    subject: str
    relation: str
    prompt: str
    answer: str
    checkpoint: str
    clean: float
    corrupted: float
    window: int
    tokens: tuple[str, ...]
    peaks: dict[str, Place]
    effects: dict[str, list[list[float]]]
    neurons: tuple[Neuron, ...]
    neurons_by_layer: tuple[float, ...]
    hits: dict[str, list[float]]
    lens_facts: int
    made_at: datetime


def locate(
    settings: Settings,
    subject: str,
    relation: str,
    *,
    checkpoint: str = "base",
    answer: str | None = None,
    samples: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> Located:
    """Causal tracing, integrated-gradient neurons and the vocabulary lens for one fact.

    Args:
        subject: the label, as the warehouse has it.
        relation: the property, such as P19.
        answer: what to trace; default: what the model itself says of the fact.

    Raises:
        NotFound: no such fact, template or checkpoint.
    """
    known = templates()
    if relation not in known:
        raise NotFound(f"property {relation!r} has no template; known are {', '.join(sorted(known))}")
    with warehouse(settings) as wh:
        asked = one_object_each(wh, relation)
    if subject not in {fact["subject"] for fact in asked}:
        near = ", ".join(sorted(f["subject"] for f in asked)[:5])
        raise NotFound(f"the warehouse has no {relation} of {subject!r}; it has {len(asked)}, such as {near}")
    found = find_checkpoint(settings, checkpoint)
    model = at_checkpoint(settings, store_of(settings), found)
    prompt = known[relation].prompt(0, subject)
    said = answer or current_answer(model, prompt).strip()
    traced = causal_trace(model, prompt, subject, said, samples=samples, seed=settings.seed, progress=progress)
    attributed = neuron_attributions(model, [prompt], [answer_ids(model, prompt, said)])[0]
    others = asked[:LENS_FACTS]
    ranks = lens_ranks(
        model,
        [known[relation].prompt(0, f["subject"]) for f in others],
        [f["subject"] for f in others],
        [f["object"] for f in others],
    )
    hits = {f"{what}@{k}": ranks.hit(k)[i].tolist() for k in (10, 50) for i, what in enumerate(("entity", "fact"))}
    highest, width = float(attributed.max()), attributed.shape[1]
    order = attributed.flatten().argsort(descending=True)[:NUM_NEURONS].tolist()
    return Located(
        subject=subject,
        relation=relation,
        prompt=prompt,
        answer=said,
        checkpoint=found.checkpoint_id if found else "base",
        clean=traced.clean,
        corrupted=traced.corrupted,
        window=traced.window,
        tokens=traced.tokens,
        peaks={site: _peak(traced, site) for site in SITES},
        effects={site: traced.effect(site).tolist() for site in SITES},
        neurons=tuple(
            Neuron(layer=i // width, neuron=i % width, share=float(attributed.flatten()[i]) / (highest or 1.0)) for i in order
        ),
        neurons_by_layer=tuple(attributed.clamp_min(0).sum(1).tolist()),
        hits=hits,
        lens_facts=len(others),
        made_at=datetime.now(UTC),
    )


def _peak(traced: CausalTrace, site: Any) -> Place:
    token, layer = traced.peak(site)
    return Place(token=token, text=traced.tokens[token], layer=layer, effect=float(traced.effect(site)[token, layer]))


def write_located(found: Located, folder: Path) -> Path:
    """`locate.svg` (ROME's figure), `locate.md` and `locate.json` in a folder.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        "block": "state after the block",
        "mlp": f"feed-forward, window {found.window}",
        "attention": f"attention, window {found.window}",
    }
    panels = [HeatMap(names[site], found.effects[site], 0.0, max(found.clean - found.corrupted, 1e-9)) for site in SITES]
    layers = [str(i) for i in range(len(found.neurons_by_layer))]
    rows = [repr(t)[1:-1] for t in found.tokens]
    title = f"Probability of {found.answer!r} brought back, {found.corrupted:.3f} to {found.clean:.3f}"
    (folder / "locate.svg").write_text(heat_maps_svg(title, rows, layers, panels, "layer"), encoding="utf-8")
    (folder / "locate.json").write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
    page = folder / "locate.md"
    page.write_text(located_markdown(found), encoding="utf-8")
    return page


def located_markdown(found: Located) -> str:
    """The page beside the figure."""
    lines = [
        f"# Where the model recalls: {found.prompt} {found.answer}",
        "",
        f"Checkpoint {found.checkpoint}. With the subject blurred the answer's probability falls from {found.clean:.3f} to "
        f"{found.corrupted:.3f}; each cell of the figure is what one clean state, put back, brings back of it "
        "(Meng et al. 2022, section 2).",
        "",
        "![causal tracing](locate.svg)",
        "",
        "| restored | at token | layer | brought back |",
        "| --- | --- | --- | --- |",
        *(f"| {site} | {p.token} `{p.text}` | {p.layer} | {p.effect:.3f} |" for site, p in found.peaks.items()),
        "",
        "| layer | integrated gradients of its neurons | entity Hit@10 | Hit@50 | fact Hit@10 | Hit@50 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for layer, total in enumerate(found.neurons_by_layer):
        shares = " | ".join(f"{found.hits[key][layer]:.3f}" for key in ("entity@10", "entity@50", "fact@10", "fact@50"))
        lines.append(f"| {layer} | {total:.3f} | {shares} |")
    first = ", ".join(f"{n.layer}.{n.neuron} ({n.share:.2f})" for n in found.neurons[:8])
    return "\n".join(
        [
            *lines,
            "",
            f"Strongest neurons (layer.neuron, share of the largest): {first}.",
            "",
            f"Hit@k: the share of {found.lens_facts} facts of {found.relation} with a token of the entity, or of the fact's "
            "object, among the first k that the layer's feed-forward output at the subject's last token speaks for.",
            "",
            "Location is no advice on where to edit: Hase et al. (2023) found that causal tracing's layer says almost nothing "
            "about which layer's edit succeeds. Choose layers by `errata benchmark` on the development split.",
            "",
        ]
    )
