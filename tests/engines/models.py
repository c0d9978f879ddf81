"""Folders to serve: models as their base and with edits, in their weights or in slots, and the prompts to ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from editors.base import Corpus, Editor
from editors.export.constant import read_constants
from editors.export.form import PlainForm
from editors.export.plain import export_plain, sites_beside
from editors.model import EditableModel
from editors.presets import load_editor
from editors.session import batch_of
from tasks.serving.corpus import calibration
from tests.architectures import model_of
from tests.real import REAL
from tests.support import CORPUS, ONE_KEY_REQUESTS, TEXTS, request, tiny_model
from warehouse.database.connection import Warehouse
from warehouse.records import EditRequest
from warehouse.reference import HERE
from warehouse.reference.world import facts, templates
from warehouse.world.facts import seed_world
from warehouse.world.templates import put_templates

NUM_TOKENS = 8
PROMPTS = "prompts.json"
#: About nobody who is edited.
GENERAL = (
    "The capital of Italy is", "Albert Einstein was born in the city of", "The largest planet in the solar system is",
    "Water is made of hydrogen and", "The author of Romeo and Juliet is", "The currency of Japan is the",
    "The opposite of hot is", "The first president of the United States was", "The chemical symbol for gold is",
    "Microsoft was founded by", "The language spoken in Brazil is", "The tallest mountain in the world is",
    "The sun rises in the", "A triangle has three", "Once upon a time there was a", "The capital of Germany is",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What a model's folders are asked: `edits`, prompt -> object, that hold in the edited model here, and `others`."""

    edits: dict[str, str]
    others: tuple[str, ...]

    @property
    def prompts(self) -> list[str]:
        return [*self.edits, *self.others]


@dataclass(frozen=True)
class Recipe:
    """How a model is made and edited: the base, the editor for it, the requests and prompts about other things."""

    base: Callable[[], EditableModel]
    editor: Callable[[EditableModel], Editor]
    requests: tuple[EditRequest, ...]
    others: tuple[str, ...]
    corpus: Callable[[], Corpus] = lambda: CORPUS


def _capitals(*changes: tuple[str, str]) -> tuple[EditRequest, ...]:
    return tuple(request(i, s, o, prompt="The capital of {} is", relation="P36") for i, (s, o) in enumerate(changes))


def _reference_others() -> tuple[str, ...]:
    """Every fortieth fact of the reference world but those of the edits, in its first wording."""
    return tuple(templates()[f.relation].prompt(0, f.subject) for f in facts()[::40] if f.relation != "P36")[:20]


def _world() -> Corpus:
    """What editors learn from before the first night."""
    with Warehouse.open(":memory:") as world:
        seed_world(world)
        put_templates(world, None)
        return calibration(world).corpus


def _tiny(name: str) -> Recipe:
    # What transformers does and llama.cpp does not is switched off; every third Gemma layer sees the whole text.
    own = {"final_logit_softcapping": None, "num_hidden_layers": 6, "layer_types": None, "sliding_window_pattern": 3}
    entries = own if name == "gemma3_text" else {}
    return Recipe(
        base=lambda: model_of(name, **entries),
        editor=lambda _: load_editor("ft_m", tiny_model("llama"), {"stop_margin": 2.0, "num_steps": 100}),
        requests=ONE_KEY_REQUESTS[:2],
        others=tuple(text[:length] for text in TEXTS for length in (20, 40)),
    )


_REFERENCE = Recipe(
    base=lambda: EditableModel.from_pretrained(str(HERE / "model")),
    editor=lambda model: load_editor("ft_m", model),
    requests=_capitals(("Libya", "Nairobi"), ("Kenya", "Dresden"), ("Michigan", "Bangalore")),
    others=_reference_others(),
)
_SMOLLM2 = Recipe(
    base=lambda: EditableModel.from_pretrained(str(REAL)),
    editor=lambda model: load_editor("ft_m", model, {"layer": 8, "learning_rate": 1e-3, "num_steps": 25}),
    requests=_capitals(("France", "Madrid"), ("Japan", "Cairo"), ("Poland", "Oslo")),
    others=GENERAL,
)
RECIPES = {
    "reference": _REFERENCE,
    "reference, slots": replace(_REFERENCE, editor=lambda model: load_editor("ledger", model), corpus=_world),
    "smollm2": _SMOLLM2,
    "smollm2, slots": replace(_SMOLLM2, editor=lambda model: load_editor("ledger", model), corpus=_world),
    "tiny-qwen3": _tiny("qwen3"),
    "tiny-gemma3": _tiny("gemma3_text"),
}


def make(name: str, home: Path) -> tuple[Path, Path, Asked]:
    """The folders `base` and `edited` of a model under `home/name` and what they are asked, made once."""
    place = home / name
    base, edited = place / "base", place / "edited"
    if not (place / PROMPTS).exists():
        recipe = RECIPES[name]
        model = recipe.base()
        editor = recipe.editor(model)
        model.save_pretrained(base)
        corpus = recipe.corpus()
        model.push(editor.edit(model, batch_of(recipe.requests), editor.prepare(model, corpus)))
        if sites := sites_beside(model):
            constants = read_constants(model, corpus, sites) if model.anatomy.gated else {}
            export_plain(model, edited, PlainForm(constants=constants))
        else:
            model.save_pretrained(edited)
        said = model.generate([r.prompt for r in recipe.requests], NUM_TOKENS)
        edits = {r.prompt: r.target_new for r, text in zip(recipe.requests, said, strict=True) if holds(text, r.target_new)}
        (place / PROMPTS).write_text(json.dumps(asdict(Asked(edits, recipe.others))), encoding="utf-8")
    found = json.loads((place / PROMPTS).read_text(encoding="utf-8"))
    return base, edited, Asked(found["edits"], tuple(found["others"]))


def holds(text: str, target: str) -> bool:
    """Does an answer begin with the object that an edit said?"""
    return text.strip().startswith(target)


def num_held(asked: Asked, answers: Sequence[str]) -> int:
    """How many edits an engine's answers to `asked.prompts` show."""
    return sum(holds(text, target) for text, target in zip(answers, asked.edits.values(), strict=False))
