"""A world of a few dozen facts and a tiny model that was trained to know them."""

from __future__ import annotations

from functools import cache

import torch

from editors.model import EditableModel
from tests.support import tiny_model
from warehouse.database.connection import MEMORY, Warehouse
from warehouse.reference.splits import is_calibration_subject
from warehouse.reference.world import templates

PLACES = ("Rome", "Oslo", "Bonn", "Lima")
FATHERS = ("Otto", "Ivo", "Nils", "Carl")
NAMES = ("Ada", "Bea", "Cid", "Dan", "Eva", "Fay", "Gus", "Hal", "Ida", "Jan", "Kim", "Leo", "Mia", "Ned", "Ola", "Pia",
         "Quin", "Rob", "Sue", "Tom", "Una", "Vic", "Wim", "Xen", "Yan", "Zoe", "Abe", "Bob", "Col", "Dot")  # fmt: skip
#: Every third has a place of birth alone: an empty slot for its father.
TRIPLES = [(name, "P19", PLACES[i % 4]) for i, name in enumerate(NAMES)] + [
    (name, "P22", FATHERS[i // 4 % 4]) for i, name in enumerate(NAMES) if i % 3
]


def subject_id(name: str) -> str:
    return f"Q:{name}"


def small_world() -> Warehouse:
    """In memory; the caller closes it."""
    world = Warehouse.open(MEMORY)
    world.append("facts", [
        {"fact_id": f"{s}{r}", "subject_id": subject_id(s), "subject": s, "relation": r, "object_id": f"Q:{o}",
         "object": o, "source": "test", "known_from_night": ""} for s, r, o in TRIPLES
    ])  # fmt: skip
    world.append("templates", [
        {"relation": t.relation, "idx": i, "prompt": p, "phrase": t.phrase, "inverse": t.inverse}
        for t in templates().values() if t.relation in ("P19", "P22") for i, p in enumerate(t.prompts)
    ])  # fmt: skip
    return world


@cache
def _trained() -> dict[str, torch.Tensor]:
    """Weights of a tiny model after a few hundred steps on the canonical sentence of every fact."""
    model = tiny_model()
    model.hf.requires_grad_(True).train()
    texts = [f"{templates()[r].prompt(0, s)} {o}." for s, r, o in TRIPLES]
    rows = model.tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.hf.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.hf(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.hf.state_dict().items()}


def knowing_model() -> EditableModel:
    """A fresh copy of the trained tiny model."""
    fresh = tiny_model()
    fresh.hf.load_state_dict(_trained())
    return EditableModel(fresh.hf, fresh.tokenizer, name="tiny-knowing")


def free_subjects() -> list[str]:
    """Names that are in no second moment."""
    return [name for name in NAMES if not is_calibration_subject(subject_id(name))]
