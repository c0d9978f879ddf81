"""In which form a checkpoint is written for servers: the settings' dtype and room, and the base's constant directions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoConfig

from editors.errors import UnsupportedModel
from editors.export.constant import RIDGE, SEED, SHARES, SUBJECTS, TOKENS, WORDINGS, Constant, read_constants
from editors.export.form import PlainForm
from editors.export.plain import sites_beside
from editors.gguf_files import gguf_of
from editors.loading import DTYPES
from editors.model import EditableModel
from editors.views import at_base
from editors.writing import writing
from tasks.serving.corpus import calibration
from tasks.serving.forms import asker_of
from tasks.settings import Settings
from tasks.workspace import warehouse
from warehouse.digests import digest_of
from warehouse.whole_files import whole_file

log = logging.getLogger(__name__)


def plain_form(settings: Settings, model: EditableModel) -> PlainForm:
    """The form of what this model wears, as the settings want it; the model stays as it is.

    What a gated feed-forward needs is read from the base the first time, and kept in the home.
    """
    try:
        sites = sites_beside(model) if model.anatomy.gated else ()
    except UnsupportedModel:
        # Whoever writes it is told so then.
        sites = ()
    constants = constants_of(settings, model, sites)
    return PlainForm(constants=constants, dtype=served_dtype(settings, model), reserve=settings.serving.reserve)


def served_dtype(settings: Settings, model: EditableModel) -> torch.dtype:
    """The dtype of exports: the settings', else that of the base's own checkpoint, else that which the base has here."""
    if settings.serving.dtype != "auto":
        return getattr(torch, settings.serving.dtype)
    if gguf_of(Path(model.name).expanduser()) is not None:
        return model.hf.dtype
    revision = None if model.revision == "local" else model.revision
    try:
        found = AutoConfig.from_pretrained(
            model.name, revision=revision or "main", trust_remote_code=settings.model.trust_remote_code
        ).dtype
    except (OSError, ValueError):
        found = None
    if isinstance(found, str):
        found = getattr(torch, found, None)
    return found if found in DTYPES else model.hf.dtype


def constants_of(settings: Settings, model: EditableModel, sites: Sequence[str]) -> dict[str, Constant]:
    """The constant direction of each site, from the home or read now.

    A home of an earlier release, and one that is made anew from a store, has none: they follow from the base and the corpus.
    """
    if not sites:
        return {}
    with at_base(model):
        asker = asker_of(settings, model)
    with warehouse(settings) as wh:
        corpus = calibration(wh, asker=asker).corpus
    numbers = (RIDGE, SHARES, TOKENS, SUBJECTS, WORDINGS, SEED)
    key = digest_of("constant", model.base_digest, corpus.digest, numbers)[:24]
    folder = settings.preparations / "constant" / key
    found = {site: read for site in sites if (read := _kept(folder, site)) is not None}
    missing = [site for site in sites if site not in found]
    if missing:
        log.info("reading what is constant at the inputs of %s", ", ".join(missing))
        made = read_constants(model, corpus, missing)
        with writing(folder):
            for site, constant in made.items():
                header = {"low": repr(constant.low), "high": repr(constant.high)}
                with whole_file(_file(folder, site)) as fresh:
                    save_file({"vector": constant.vector, "spread": constant.spread.contiguous()}, fresh, metadata=header)
                log.info("%s: 1 is %.2f to %.2f over 98 of 100 tokens", site, constant.low, constant.high)
        found |= made
    return found


def _file(folder: Path, site: str) -> Path:
    return folder / f"{site}.safetensors"


def _kept(folder: Path, site: str) -> Constant | None:
    try:
        with safe_open(_file(folder, site), "pt") as file:
            header = file.metadata()
            return Constant(file.get_tensor("vector"), file.get_tensor("spread"), float(header["low"]), float(header["high"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        # Not there, or damaged: it is made again.
        return None
