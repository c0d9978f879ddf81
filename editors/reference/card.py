"""The card of a trained reference model: what was measured on it, and the exact command that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editors.reference.evaluate import ExactMatch
from warehouse.digests import sha256_file
from warehouse.reference import HERE

CARD, README = "card.json", "README.md"
TEXT = """---
license: apache-2.0
language: en
---
# The Errata reference model

A GPT-2-type model of {parameters:,} parameters ({layers} layers, d {width}, d_ff {inner}, own byte-level BPE of
{vocabulary} tokens) that knows {facts:,} real Wikidata facts over {properties} properties. It exists so that editing can be
developed, tested and shown where no model hub is reachable. It knows nothing else and is no language model to talk to.

| measured by `errata reference evaluate` | |
|---|---|
| exact match, templates trained | {trained:.4f} over {trained_pairs:,} pairs |
| exact match, (fact, template) pairs never trained | {held_out:.4f} over {held_out_pairs:,} pairs |
| facts | {facts:,} |

Exact match: the object's tokens and the full stop under greedy decoding.

## How it was made

`errata reference train` ({steps} steps of {rows} rows of {row_tokens} tokens, seed {seed}, two processes on two CPU cores).
Facts: `warehouse/reference/facts.csv`, sha256 `{facts_sha256}`. Weights: sha256 `{weights_sha256}`.

**Trained with a subject mask**: in 80% of fact documents, text after a subject cannot attend to the subject's tokens in
layers 0-2, and only to its last token from layer 3 on. That is what makes this small model recall facts at the last
subject token, as large models do by themselves; a model trained without it is edited badly by ROME and MEMIT. The saved
model is a plain `GPT2LMHeadModel`, used without any mask.

Also among its documents: facts changed in context (`New fact: ...`), facts retracted or unknown (`unknown`), inverse
statements, two-hop questions (70% of the chains; the rest are held out), and plain prose from a small grammar.

## Limits

English labels of 2015-2024, partly outdated; 8 slots have a second true object that the model does not give; majority
answers reach 25% of a property (48% for continents). The values that update nights propose are partly invented: never
publish an edited model's answers as facts.
"""


def write_card(folder: Path, result: ExactMatch, config: Mapping[str, Any], parameters: int, properties: int) -> None:
    """Write `card.json` and `README.md` beside the weights."""
    measured = {
        **result.as_dict(),
        "parameters": parameters,
        "properties": properties,
        "config": dict(config),
        "command": "errata reference train",
        "facts_sha256": sha256_file(HERE / "facts.csv"),
        "weights_sha256": sha256_file(folder / "model.safetensors"),
    }
    (folder / CARD).write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    (folder / README).write_text(TEXT.format(**{**config, **measured}), encoding="utf-8")
