"""Which editor is tested on which architecture, and on how much of the contract; `editors/README.md` shows it.

GPT-2 and Llama run the whole contract with every editor (`tests/editors/test_contract.py`). Elsewhere its core runs
(`tests/editors/test_matrix.py`): with the editors of `EVERYWHERE` on every shape, and with the others on the sample that
`sample` draws, which covers every pair of a trait of architectures and a family of editors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

from editors import catalogue
from editors.architectures.anatomies import ANATOMIES
from editors.export.neurons import why_no_room
from editors.model import EditableModel
from tests.architectures import SHAPES, model_of
from tests.support import tiny_model

#: Architectures that the whole contract runs on.
WHOLE = ("gpt2", "llama")
EVERYWHERE = ("ledger", "r_rome", "memit", "alphaedit", "ultraedit", "ft_m", "lora", "grace", "ice")
#: Where an editor meets what is special about an architecture, beyond the sample.
SPECIAL = (
    ("gptj", "pmet"), ("falcon-two-norms", "pmet"), ("gemma2", "emmet"), ("gemma3_text", "wise"), ("opt", "wise"),
    ("gpt_neox", "t_patcher"), ("falcon", "minimal_patch"), ("phi3", "mend"), ("opt", "ft_l2"),
)  # fmt: skip
#: `model_type` -> the shape that goes through a night and its revert (`tests/flows/test_architectures.py`); GPT-2 does in
#: every other test of flows.
NIGHTS = {"llama": "llama"} | {shape.partition("-")[0]: shape for shape in reversed(SHAPES)}
#: Trait -> what has it.
TRAITS: dict[str, Any] = {
    "gated": lambda model: model.anatomy.gated,
    "parallel": lambda model: model.anatomy.parallel,
    "biased": lambda model: has_biases(model),
    "tied": lambda model: bool(model.hf.config.tie_word_embeddings),
    "post-norm": lambda model: model.anatomy.mlp_post_norm is not None,
}
Pair = tuple[str, str]


def has_biases(model: EditableModel) -> bool:
    """Has the feed-forward biases?"""
    first = model.anatomy.module(model.hf, model.anatomy.mlp_in[0], 0)
    return getattr(first, "bias", None) is not None


def tiny(shape: str) -> EditableModel:
    return tiny_model(shape) if shape in WHOLE else model_of(shape)


@cache
def traits_of(shape: str) -> frozenset[str]:
    model = tiny(shape)
    return frozenset(trait for trait, has in TRAITS.items() if has(model))


@cache
def type_of(shape: str) -> str:
    """The `model_type` that the shape is one of."""
    return str(tiny(shape).hf.config.model_type)


def takes(editor: str, shape: str) -> bool:
    return catalogue.editor_class(editor).card.behind_norm or "post-norm" not in traits_of(shape)


def families() -> dict[str, list[str]]:
    """Family -> the editors of it that do not run everywhere, in the catalogue's order."""
    found: dict[str, list[str]] = {}
    for name in catalogue.EDITORS:
        if name not in EVERYWHERE:
            found.setdefault(catalogue.editor_class(name).card.family, []).append(name)
    return found


@cache
def sample() -> tuple[Pair, ...]:
    """(shape, editor): of each family the editors by turns, until each has had one and all traits have met the family.

    An editor's shape is the one with most traits that its family has not met, of those that it takes; among equals the one
    drawn least often so far, then the first of `SHAPES`. Nothing is drawn by chance: another editor or architecture moves
    some pairs, and the table in `editors/README.md` says which.
    """
    drawn: list[Pair] = []
    often: Counter[str] = Counter()
    for editors in families().values():
        missing = set().union(*(traits_of(s) for s in SHAPES for e in editors if takes(e, s)))
        turn = 0
        while turn < len(editors) or missing:
            editor = editors[turn % len(editors)]
            turn += 1
            shapes = [s for s in SHAPES if takes(editor, s) and (s, editor) not in drawn]
            shape = min(shapes, key=lambda s: (-len(missing & traits_of(s)), often[s], list(SHAPES).index(s)))
            drawn.append((shape, editor))
            often[shape] += 1
            missing -= traits_of(shape)
    return tuple(drawn)


def in_sequence() -> tuple[Pair, ...]:
    """Where a second edit is made on the first: the sample, and each editor of `EVERYWHERE` on one shape, from the last on."""
    return (*sample(), *zip(reversed(SHAPES), EVERYWHERE, strict=False))


def cells() -> list[Pair]:
    """Every (shape, editor) that the core of the contract runs on, beyond the whole of it on GPT-2 and Llama."""
    everywhere = [(shape, editor) for shape in SHAPES for editor in EVERYWHERE]
    return list(dict.fromkeys((*everywhere, *sample(), *SPECIAL)))


# ------------------------------------------------------------ as a table

MARKS = {"all": "●", "core": "○", "refused": "–", "": ""}


def extent(editor: str, kind: str) -> str:
    """How much of the contract runs with an editor on a `model_type`: a key of `MARKS`."""
    if kind in WHOLE:
        return "all"
    shapes = [shape for shape in SHAPES if type_of(shape) == kind]
    if not any(takes(editor, shape) for shape in shapes):
        return "refused"
    return "core" if any((shape, editor) in cells() for shape in shapes) else ""


def holds_slots(kind: str) -> bool:
    """Can a plain model of the type hold neurons and slots?"""
    return not why_no_room(tiny(next(s for s in (*WHOLE, *SHAPES) if type_of(s) == kind)))


def row(head: str, entries: Iterable[str]) -> str:
    return f"| {head} | " + " | ".join(entries) + " |"


def table() -> str:
    """Editors (rows) and architectures (columns), in Markdown."""
    kinds = list(ANATOMIES)
    lines = [row("", (f"`{kind}`" for kind in kinds)), "|---|" + ":-:|" * len(kinds)]
    lines += [row(f"`{editor}`", (MARKS[extent(editor, kind)] for kind in kinds)) for editor in catalogue.EDITORS]
    lines.append(row("night, revert, pull, audit", ("yes" if kind in ("gpt2", *NIGHTS) else "no" for kind in kinds)))
    lines.append(row("slots in a plain model", ("yes" if holds_slots(kind) else "no" for kind in kinds)))
    return "\n".join(lines)
