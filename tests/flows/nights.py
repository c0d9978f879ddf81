"""Two small nights of real entities, a tiny random model and two policies: everything that a fast run needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import tiny_model

Item = tuple[str, str]
#: (subject, property, old, new) of facts in the embedded world; the policy of updates lets each of them supersede.
UPDATES: tuple[tuple[Item, Item, Item, Item], ...] = (
    (("Q243427", "Adalbert of Prague"), ("P140", "religion or worldview"), ("Q9268", "Judaism"), ("Q432", "Islam")),
    (("Q304469", "The Famous Flames"), ("P264", "record label"), ("Q1973145", "Federal"), ("Q43327", "Motown")),
    (("Q188695", "DirectX"), ("P178", "developer"), ("Q2283", "Microsoft"), ("Q11463", "Adobe")),
)
LATER: tuple[tuple[Item, Item, Item, Item], ...] = (
    (("Q76167", "Abdurrahman Wahid"), ("P140", "religion or worldview"), ("Q432", "Islam"), ("Q748", "Buddhism")),
    (("Q231582", "Padmasambhava"), ("P140", "religion or worldview"), ("Q748", "Buddhism"), ("Q106039", "Christian")),
)
#: What the two nights ask for and what does not reach an editor: one self-reference in the first.
NUM_RECORDS, NUM_ACCEPTED = len(UPDATES) + 1, len(UPDATES)
PERMISSIVE = "{metric: perplexity_ratio, op: '<=', threshold: 1000.0, on_fail: reject, judge: point, min_n: 1}"
#: Unconstrained and long enough that a random model repeats three new facts, which `LEARNT` demands.
TEACHER = {"name": "ft", "overrides": {"layers": [0, 1, 2, 3], "num_steps": 150, "learning_rate": 0.01}}
LEARNT = "{metric: SR, op: '>=', threshold: 0.9, on_fail: reject, judge: point, min_n: 3}"
#: No tiny night has a thousand edits, and what cannot be judged fails.
STRICT = "{metric: SR, op: '>=', threshold: 0.9, on_fail: reject, judge: point, min_n: 1000}"


def event(number: int, night: int, subject: Item, prop: Item, old: Item, new: Item) -> dict[str, Any]:
    """One change of a statement, in the shape of `warehouse/reference/nights`."""
    return {
        "record_id": f"t{night:02}-{number:03}", "night": night,
        "received_at": f"2026-10-{night:02}T22:{number:02}:11Z", "op": "set_value",
        "subject": {"id": subject[0], "label": subject[1]}, "property": {"id": prop[0], "label": prop[1]},
        "old_value": {"type": "item", "id": old[0], "label": old[1]},
        "new_value": {"type": "item", "id": new[0], "label": new[1]},
        "rank": "normal", "qualifiers": {}, "references": 2, "statement_id": f"{subject[0]}$test-{number}",
        "editor": {"class": "autoconfirmed", "patrolled": True}, "comment": "", "tags": [],
        "revision": {"old": 2_000_000_000 + number, "new": 2_400_000_000 + number},
    }  # fmt: skip


def first_night() -> list[str]:
    """The lines of a night of three updates and one self-reference."""
    lines = [event(i, 1, *update) for i, update in enumerate(UPDATES, 1)]
    subject, prop, old, _ = LATER[0]
    lines.append(event(len(lines) + 1, 1, subject, prop, old, subject))
    return [json.dumps(line) for line in lines]


def second_night() -> list[str]:
    return [json.dumps(event(i, 2, *update)) for i, update in enumerate(LATER, 1)]


def write_night(folder: Path, name: str, lines: Sequence[str | bytes]) -> Path:
    """A night of the `recorded` source, one line for each record."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.events.jsonl"
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def write_policy(path: Path, rule: str, name: str) -> Path:
    path.write_text(f"name: {name}\nversion: 1\nallow_unsigned: true\nrules:\n  - {rule}\n", encoding="utf-8")
    return path


def write_world(folder: Path) -> dict[str, Any]:
    """Model, nights and policies under `folder`; returns settings as in `errata.toml`, all but `home`."""
    tiny = tiny_model("gpt2")
    tiny.hf.save_pretrained(folder / "model")
    tiny.tokenizer.save_pretrained(folder / "model")
    write_night(folder / "nights", "night-01", first_night())
    write_night(folder / "nights", "night-02", second_night())
    write_policy(folder / "strict.yaml", STRICT, "strict")
    return {
        "policy": str(write_policy(folder / "permissive.yaml", PERMISSIVE, "permissive")),
        "model": {"name": str(folder / "model")},
        "editor": {"name": "memit"},
        "source": {"kind": "recorded", "path": str(folder / "nights")},
        "probes": {"per_request": 1, "drawdown": 8, "held_texts": 3, "generations": 2},
        "serving": {"canaries": 4},
        "threads": 1,
    }


def config_of(world: dict[str, Any], home: Path, **changes: Any) -> dict[str, Any]:
    """Settings of one home; `source` may be given as a folder of recorded nights."""
    return {**world, "home": str(home), **changes}


def write_before_nights(world: dict[str, Any]) -> Path:
    """Beside the world a home without a night, whose base was asked what it knows and was read by two editors."""
    from editors.presets import load_editor
    from tasks.serving.known import FOR_A_NIGHT, ask_known
    from tasks.serving.models import base_model
    from tasks.serving.prepare import preparation_of
    from tasks.settings import configure

    settings = configure(config_of(world, _before(world)))
    ask_known(settings, each=FOR_A_NIGHT)
    model = base_model(settings)
    for name in ("memit", "ledger"):
        preparation_of(settings, load_editor(name, model), model)
    return settings.home


def before_nights(world: dict[str, Any], home: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a home that begins as a copy of the one of `write_before_nights`: that spares most of a first night."""
    shutil.copytree(_before(world), home)
    return config_of(world, home, **changes)


def _before(world: dict[str, Any]) -> Path:
    return Path(world["model"]["name"]).with_name("before-nights")
