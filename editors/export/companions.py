"""What travels with every export beside the weights: tokenizer, chat template, generation settings, licence."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from editors.asking.tokens import save_tokenizer
from editors.model import EditableModel

#: How the names of such files begin, in any case.
LICENCES = ("licence", "license", "notice", "copying", "copyright", "use_policy", "acceptable_use")
GENERATION = "generation_config.json"


def is_licence(name: str) -> bool:
    """Is a file of this name one that says what may be done with a model?"""
    return name.lower().startswith(LICENCES)


def write_companions(model: EditableModel, folder: Path) -> None:
    """Write into an export what the base brought along; its end tokens are in the generation settings."""
    save_tokenizer(model.own_tokenizer, folder)
    settings = model.hf.generation_config
    if settings is not None:
        # Not by `save_pretrained`, which refuses settings that published models have.
        settings.to_json_file(folder / GENERATION)
    for path in licences_of(model):
        shutil.copyfile(path, folder / path.name)


def licences_of(model: EditableModel) -> list[Path]:
    """Licence files in the base's folder; of a hub id, in this machine's copy of it."""
    home = Path(model.name).expanduser()
    if home.is_file():
        home = home.parent
    elif not home.is_dir():
        revision = None if model.revision == "local" else model.revision
        try:
            found = try_to_load_from_cache(model.name, "config.json", revision=revision)
        except ValueError:
            # A name for people, of a model that was made in memory.
            return []
        if not isinstance(found, str):
            return []
        home = Path(found).parent
    return sorted(p for p in home.iterdir() if is_licence(p.name) and p.is_file())
