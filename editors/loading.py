"""A checkpoint from disk or hub: whole and plain, or refused in one line that names the file or tensor and the way out."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import get_max_memory
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from editors.errors import UnsupportedModel
from editors.gguf_files import SUFFIX, check_all_used, gguf_of, read_header
from editors.stored_tensors import INDEX
from warehouse.limits import PICKLES

POINTER = b"version https://git-lfs"
AGAIN = "copy or download it again"
#: Buffers that older releases saved beside the weights; no model reads them.
OLD_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
NAMES_SHOWN = 3
#: Of a device's free memory, weights get so much: an edit may need a quarter of the model's size beside it.
FILLED = 0.8
#: `auto`, or as accelerate writes it: module -> device, `cpu` or `disk`, every module with weights in exactly one entry.
DeviceMap = Literal["auto"] | Mapping[str, str]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_checkpoint(
    name: str,
    *,
    revision: str | None,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
    device_map: DeviceMap | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and tokenizer from a local folder, a `.gguf` file or a hub id; every tensor accounted for.

    Weights come from safetensors, or from a GGUF, whose quantised blocks become plain numbers of `dtype`. None is the dtype
    that the checkpoint is stored in: what its config says, else that of its weights; of a GGUF float32.

    Args:
        device_map: where modules are loaded to; None: all to the CPU. `auto` fills the accelerators in their order to
            `FILLED` of what is free, then the CPU, then leaves weights in their files.

    Raises:
        UnsupportedModel: there is nothing loadable at that name, or not all of it.
    """
    place = Path(name).expanduser()
    gguf = gguf_of(place)
    if gguf is not None and device_map is not None:
        raise UnsupportedModel(
            f"{gguf} cannot be spread over devices: a .gguf file is taken apart as a whole; load it without model.device_map "
            "where there is room, save it as a folder (`save_pretrained`), and set model.name to that"
        )
    if gguf is not None:
        return _load_gguf(gguf, dtype or torch.float32)
    if place.is_dir():
        check_folder(place)
        name = str(place)
    elif _is_path(name):
        what = "is a file, not a folder" if place.is_file() else "is not there"
        raise UnsupportedModel(
            f"model folder {name!r} {what}; set model.name to a folder with config.json, to a .gguf file, or to a hub id"
        )
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None and not place.exists():
        options["revision"] = revision
    plain: dict[str, Any] = {}
    if device_map is not None:
        plain = {"device_map": device_map} | ({"max_memory": _room()} if device_map == "auto" else {})
    return _load(name, name, f"{name!r} (revision {revision})", dtype, options, plain)


def _room() -> dict[int | str, int]:
    """Bytes of weights that each device may get, in accelerate's names."""
    return {device: int(free * FILLED) for device, free in get_max_memory().items()}


def _load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of a GGUF: what a folder that it is saved to gives, down to its base digest."""
    _check_pointer(path)
    header = read_header(path)
    # Alone in a folder of its own: transformers would prefer another model's tokenizer that happens to lie beside it.
    with tempfile.TemporaryDirectory(prefix="errata-") as alone, _bar_on_terminals():
        Path(alone, path.name).symlink_to(path.absolute())
        # Without `dequantize` the config keeps an entry of the quantisation, and the model cannot be saved.
        plain = {"quantization_config": GgufConfig(dequantize=True)}
        model, tokenizer = _load(alone, str(path), repr(str(path)), dtype, {"gguf_file": path.name}, plain)
    check_all_used(path, header, model)
    config: Any = model.config
    config.name_or_path = model.name_or_path = tokenizer.name_or_path = str(path)
    config.architectures = [type(model).__name__]
    return model, tokenizer


def _load(
    source: str, name: str, called: str, dtype: torch.dtype | None, options: dict[str, Any], plain: dict[str, Any] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load from `source` what people know as `name`; `plain`: options of the model alone."""
    with _one_line(f"cannot load model {called}"):
        # Mismatched shapes are refused below, by name.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype or "auto",
            attn_implementation="eager",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
            **(plain or {}),
        )
    model, info = loaded
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UnsupportedModel(_adapter(name))
    _check_quantised(name, getattr(model.config, "quantization_config", None))
    check_tensors(name, info)
    if model.dtype not in DTYPES:
        stored = str(model.dtype).removeprefix("torch.")
        raise UnsupportedModel(f"{name!r} is stored in {stored}, which nothing here edits; set model.dtype to float32")
    with _one_line(f"cannot load the tokenizer of {called}"):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    check_vocabulary(name, model, tokenizer)
    return model, tokenizer


def check_folder(folder: Path) -> None:
    """Look at a checkpoint's files before anything is built from them.

    Raises:
        UnsupportedModel: an adapter, a pickle, a large-file pointer, quantised weights, or a file missing or cut off.
    """
    if (folder / "adapter_config.json").exists():
        raise UnsupportedModel(_adapter(str(folder)))
    files = sorted(p for p in folder.iterdir() if p.is_file())
    for path in files:
        if path.suffix in {".safetensors", ".json", ".model", ".txt"}:
            _check_pointer(path)
    weights = [p for p in files if p.suffix == ".safetensors"]
    pickles = [p for p in files if p.suffix in PICKLES]
    if pickles and not weights:
        raise UnsupportedModel(
            f"{folder} has its weights in {pickles[0].name}, a pickle, which can run code when it is loaded; have them saved "
            "as safetensors (`save_pretrained`) where they come from"
        )
    if not (folder / "config.json").exists():
        raise UnsupportedModel(f"{folder} has no config.json; it is no Hugging Face model folder, or only part of one")
    config = _read_json(folder / "config.json")
    _check_quantised(str(folder), config.get("quantization_config"))
    index = folder / INDEX
    wanted = sorted(set(_read_json(index).get("weight_map", {}).values())) if index.exists() else []
    missing = [shard for shard in wanted if not (folder / shard).exists()]
    if missing:
        raise UnsupportedModel(f"{folder} lacks {missing[0]}, which {index.name} names ({len(missing)} missing); {AGAIN}")
    if not weights:
        raise UnsupportedModel(f"{folder} has no weights: no file in it ends in .safetensors; {AGAIN}")
    for path in weights:
        _check_safetensors(path)


def check_tensors(name: str, info: Any) -> None:
    """Refuse a checkpoint that lacks tensors of its architecture, has others, or has them in another shape.

    What is missing would be random numbers.

    Raises:
        UnsupportedModel: naming the first of them.
    """
    unexpected = [key for key in sorted(info["unexpected_keys"]) if not key.endswith(OLD_BUFFERS)]
    shapes = [f"{key} ({tuple(found)}, not {tuple(own)})" for key, found, own in sorted(info["mismatched_keys"])]
    for found, words in (
        (sorted(info["missing_keys"]), "lacks tensors of its architecture"),
        (shapes, "has tensors of another shape than its config.json says"),
        (unexpected, "has tensors that its architecture does not know"),
    ):
        if found:
            raise UnsupportedModel(
                f"checkpoint {name!r} {words}: {_some(found)}; config.json and weights do not belong together, or the "
                f"checkpoint was saved in part: {AGAIN}, or save it whole with `save_pretrained`"
            )


def check_vocabulary(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with ids that the embedding has no row for.

    Raises:
        UnsupportedModel: naming the first such tokens.
    """
    embedding: Any = model.get_input_embeddings()
    rows = int(embedding.weight.shape[0])
    beyond = [token for token, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]) if i >= rows]
    if beyond:
        raise UnsupportedModel(
            f"the tokenizer of {name!r} has {rows + len(beyond)} tokens, the embedding {rows} rows: no row for {_some(beyond)}"
            "; use the tokenizer that belongs to these weights, or give them rows (`resize_token_embeddings`) and train those"
        )


def _adapter(name: str) -> str:
    # Merging it here would make a base whose bits depend on the PEFT release and on a base that nothing pins: production
    # could not be made again from its parts.
    return (
        f"{name!r} is a PEFT adapter, not a model: edits are written into whole weights. Merge it once "
        "(`PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(FOLDER)`, the tokenizer beside it) and "
        "set model.name to that folder"
    )


def _check_quantised(name: str, quantisation: Any) -> None:
    if quantisation:
        values = quantisation if isinstance(quantisation, dict) else vars(quantisation)
        method = values.get("quant_method") or "an unnamed method"
        raise UnsupportedModel(
            f"the weights of {name!r} are quantised ({getattr(method, 'value', method)}, see its config.json); "
            "edits are written into plain weights: give the checkpoint that it was quantised from"
        )


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if 0 < length <= size - 8 else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise UnsupportedModel(f"{path} is no safetensors file, or cut off in its header ({size:,} bytes); {AGAIN}")
    ends = [value["data_offsets"][1] for key, value in header.items() if key != "__metadata__"]
    whole = 8 + length + max(ends, default=0)
    if size != whole:
        raise UnsupportedModel(f"{path} has {size:,} bytes where its header says {whole:,}: it is cut off or damaged; {AGAIN}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModel(f"{path} is not JSON ({error}); {AGAIN}") from error
    if not isinstance(found, dict):
        raise UnsupportedModel(f"{path} holds no JSON object; {AGAIN}")
    return found


def _check_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise UnsupportedModel(
                f"{path} is a large-file pointer, not the file itself; fetch it with `git lfs pull` in the folder it came from"
            )


def _is_path(name: str) -> bool:
    """Does a name say a place on this machine, rather than `owner/name` on a hub?"""
    a_path = name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name or name.lower().endswith(SUFFIX)
    return a_path or Path(name).exists()


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def _bar_on_terminals() -> Iterator[None]:
    """Let transformers draw its bar over a GGUF's tensors, which takes a while, for people only: a log would fill with it."""
    if sys.stderr.isatty():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        yield


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Say what a library says in one line, and keep its own reports quiet: what they hold is refused by name."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # libraries below raise all kinds: OSError, KeyError, ImportError, SafetensorError
        said = " ".join(str(error).split()) or type(error).__name__
        raise UnsupportedModel(f"{what}: {said[:1000]}") from error
    finally:
        transformers_logging.set_verbosity(before)
