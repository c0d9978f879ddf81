"""Folders to serve: models as their base and with edits, in their weights or in slots, and the prompts to ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from editors.base import Corpus, Editor
from editors.export.constant import read_constants
from editors.export.form import PlainForm
from editors.export.plain import export_plain, sites_beside
from editors.model import EditableModel
from editors.presets import load_editor
from editors.session import batch_of
from tasks.serving.corpus import calibration
from tests.architectures import model_of, steady_model
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
    """What a model's folders are asked, and what the hooked model answers, as it is audited.

    Attributes:
        edits: prompt -> object, of those that hold in the hooked model.
        others: prompts about other things.
        base: what the base answers to `prompts`, in float32.
        audited: what the hooked model with its edits answers to them.
    """

    edits: dict[str, str]
    others: tuple[str, ...]
    base: tuple[str, ...]
    audited: tuple[str, ...]

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


#: vLLM's attention on the CPU has no heads of less than 32. Of Gemma 3, what transformers does and llama.cpp does not is
#: switched off, and every third layer sees the whole text.
TINY: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 32},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32, "final_logit_softcapping": None, "num_hidden_layers": 6,
                    "layer_types": None, "sliding_window_pattern": 3},
}  # fmt: skip


def _tiny(name: str) -> Recipe:
    return Recipe(
        base=lambda: model_of(name, **TINY[name]),
        editor=lambda _: load_editor("ft_m", tiny_model("llama"), {"stop_margin": 2.0, "num_steps": 100}),
        requests=ONE_KEY_REQUESTS[:2],
        others=tuple(text[:length] for text in TEXTS for length in (20, 40)),
    )


def _tiny_in_slots(name: str, layer: int, louder: float = 0.0) -> Recipe:
    """A random model in slots: each prompt ends with its subject, for attention at random carries little to a later token.

    Args:
        louder: is added to the norm behind the edited feed-forward, which in Gemma bounds what a slot can say. Without it one
            edit leads by .08 logits, less than a step of bfloat16 there (.125), and is lost in it, in transformers too.
    """
    # Presets have no section for random models.
    numbers = {"layer": layer, "value_steps": 20, "value_lr": 1.0, "clamp_norm": 200.0, "stop_loss": None}

    def base() -> EditableModel:
        # Four blocks of Q8_0 a row: in a single one the threshold is the largest number, and the filter's lose their digits.
        model = steady_model(name, hidden_size=128, **TINY[name])
        if louder:
            with torch.no_grad():
                model.hf.get_parameter(f"model.layers.{layer}.post_feedforward_layernorm.weight").add_(louder)
        return EditableModel(model.hf, model.tokenizer, name=model.name)

    return replace(
        _tiny(name),
        base=base,
        editor=lambda _: load_editor("ledger", tiny_model("llama"), numbers),
        requests=tuple(
            request(i, subject, target, prompt="The birthplace of {}")
            for i, (subject, target) in enumerate((("Ada Lovelace", "Paris"), ("Grace Hopper", "London")))
        ),
        # The first two name the subjects.
        others=tuple(text[:length] for text in TEXTS[2:] for length in (12, 20, 30, 40)),
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


def _in_slots(recipe: Recipe) -> Recipe:
    """The same model, edited by the ledger."""
    return replace(recipe, editor=lambda model: load_editor("ledger", model), corpus=_world)


RECIPES = {
    "reference": _REFERENCE,
    "reference, slots": _in_slots(_REFERENCE),
    "smollm2": _SMOLLM2,
    "smollm2, slots": _in_slots(_SMOLLM2),
    "tiny-qwen3": _tiny("qwen3"),
    "tiny-qwen3, slots": _tiny_in_slots("qwen3", 3),
    "tiny-gemma3": _tiny("gemma3_text"),
    "tiny-gemma3, slots": _tiny_in_slots("gemma3_text", 5, louder=3.0),
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
        asked = [*(r.prompt for r in recipe.requests), *recipe.others]
        before = dict(zip(asked, model.generate(asked, NUM_TOKENS), strict=True))
        model.push(editor.edit(model, batch_of(recipe.requests), editor.prepare(model, corpus)))
        if sites := sites_beside(model):
            constants = read_constants(model, corpus, sites) if model.anatomy.gated else {}
            export_plain(model, edited, PlainForm(constants=constants))
        else:
            model.save_pretrained(edited)
        said = dict(zip(asked, model.generate(asked, NUM_TOKENS), strict=True))
        edits = {r.prompt: r.target_new for r in recipe.requests if holds(said[r.prompt], r.target_new)}
        kept = [*edits, *recipe.others]
        made = Asked(edits, recipe.others, tuple(before[p] for p in kept), tuple(said[p] for p in kept))
        (place / PROMPTS).write_text(json.dumps(asdict(made)), encoding="utf-8")
    found = json.loads((place / PROMPTS).read_text(encoding="utf-8"))
    return base, edited, Asked(found.pop("edits"), **{key: tuple(value) for key, value in found.items()})


def holds(text: str, target: str) -> bool:
    """Does an answer begin with the object that an edit said?"""
    return text.strip().startswith(target)


def num_held(asked: Asked, answers: Sequence[str]) -> int:
    """How many edits an engine's answers to `asked.prompts` show."""
    return sum(holds(text, target) for text, target in zip(answers, asked.edits.values(), strict=False))
