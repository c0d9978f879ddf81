"""What a serving engine has to know of a checkpoint's folder, read from the folder itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from editors.architectures.anatomy import Anatomy
from editors.asking.tokens import TOKENIZER_CONFIG
from editors.model import tensor_bytes
from editors.stored_tensors import StoredTensors
from tasks.proving.weights import held_digests
from warehouse.digests import digest_of, sha256_bytes, sha256_file
from warehouse.records import EngineFacts, Manifest

TOKENIZER = "tokenizer.json"
#: Of tokenizers that have no `tokenizer.json`.
TOKENIZER_FILES = (TOKENIZER_CONFIG, "tokenizer.model", "vocab.json", "merges.txt", "spiece.model")
CARD = "README.md"


def engine_facts(folder: Path, anatomy: Anatomy, forms: Sequence[str] = (), room: str = "") -> EngineFacts:
    """Read a Hugging Face folder of the promoted model.

    Args:
        anatomy: where its feed-forward is.
        forms: in which the model is asked; empty: plainly.
        room: what is reserved beside the base's own columns; empty: nothing is.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored = StoredTensors(folder)
    kinds: Counter[str] = Counter()
    digests: dict[str, str] = {}
    for name, tensor in stored.items():
        kinds.update([str(tensor.dtype).removeprefix("torch.")] if tensor.is_floating_point() else [])
        digests[name] = sha256_bytes(tensor_bytes(tensor))
    return EngineFacts(
        model_class=", ".join(config.get("architectures") or ["unknown"]),
        dtype=", ".join(kind for kind, _ in kinds.most_common()),
        widths=_widths(stored, anatomy),
        tokenizer=_tokenizer(folder),
        forms=tuple(forms),
        tensors=digests,
        room=room or None,
        held=held_digests(stored),
    )


def _widths(stored: StoredTensors, anatomy: Anatomy) -> tuple[int, ...]:
    """Of the projections back, whose input is as wide as the feed-forward: one for each layer, one where all are equal."""
    axis, found, layer = (1 if anatomy.orientation == "out_in" else 0), [], 0
    while (name := anatomy.mlp_out.format(layer=layer) + ".weight") in stored:
        found.append(stored.shape(name)[axis])
        layer += 1
    return tuple(found[:1]) if len(set(found)) == 1 else tuple(found)


def _tokenizer(folder: Path) -> str:
    if (folder / TOKENIZER).is_file():
        return sha256_file(folder / TOKENIZER)
    return digest_of({name: sha256_file(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()})


def engine_lines(manifest: Manifest) -> list[tuple[str, str]]:
    """What people and the model card are told of it, as (what, which); empty for checkpoints of earlier releases."""
    facts = manifest.engine
    if facts is None:
        return []
    widths = ", ".join(str(width) for width in facts.widths)
    return [
        ("class", facts.model_class),
        ("dtype", facts.dtype),
        ("feed-forward width", widths if len(facts.widths) < 2 else f"by layer: {widths}"),
        *([("room", facts.room)] if facts.room else []),
        ("tensors", f"{len(facts.tensors)}, sha256 over all {digest_of(facts.tensors)}"),
        ("tokenizer", f"sha256 {facts.tokenizer}"),
        ("asked in forms", ", ".join(facts.forms) or "plain"),
        ("canaries", manifest.canaries or "none"),
    ]


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write the model card, which says what the folder is for and how a server of it is proved. Equal content, equal bytes."""
    checkpoint = manifest.checkpoint
    base = "a local model" if checkpoint.base_model == "local" else f"`{checkpoint.base_model}`"
    rows = "\n".join(f"| {what} | {which} |" for what, which in engine_lines(manifest))
    (folder / CARD).write_text(
        f"""# Checkpoint {checkpoint.checkpoint_id[:12]}

Made by Errata in {manifest.night} of lineage {manifest.lineage} from {base} (revision {checkpoint.base_revision}) and
{len(checkpoint.patch_digests)} patches. The licence is that of the base model.

| for a serving engine | |
|---|---|
| checkpoint | {checkpoint.checkpoint_id} |
{rows}

`errata serving check URL` asks a running server the canaries of this checkpoint and says whether it answers from it.
""",
        encoding="utf-8",
    )
