"""This machine: whether the model loads and fits, the device, room on the disk, and the clock."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import torch

from tasks.doctor.health import Health, fault, gib, ok, warning
from tasks.serving.base_digests import model_files
from tasks.serving.models import base_model, device_of
from tasks.settings import Settings
from tasks.workspace import store_of
from warehouse.checkpoints.store_check import time_of

#: Bytes of a weight by the name that a config gives its type.
WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
#: A GGUF's weights are a byte or less each, and are loaded as float32.
GGUF_GROWTH = 4
#: The weights and, beside them, what an edit of a batch needs (docs/PERFORMANCE.md has the shares of each editor).
COMFORT = 2.0
#: Below this a disk counts as full: SQLite and DuckDB need some for their journals.
LITTLE_BYTES = 256 * 2**20
#: More than this, and signatures, sorted times and conditions of servers begin to disagree.
CLOCK_S = 60.0


def model_bytes(settings: Settings) -> int:
    """Bytes of the model's weights once they are loaded, estimated from its files.

    Raises:
        OSError: the model is not on this machine.
    """
    files = model_files(settings.model)
    stored = sum(path.stat().st_size for path in files if path.suffix in (".safetensors", ".gguf"))
    if any(path.suffix == ".gguf" for path in files):
        return stored * GGUF_GROWTH
    config = next((json.loads(path.read_bytes()) for path in files if path.name == "config.json"), {})
    kept = WIDTHS.get(str(config.get("dtype") or config.get("torch_dtype")), 4)
    return stored * WIDTHS.get(settings.model.dtype, kept) // kept


def free_memory() -> int | None:
    """Bytes that a process may still take, in a container no more than its limit leaves; None where nobody says."""
    found: list[int] = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024)
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text(encoding="ascii").strip()
        found.append(int(most) - int((group / "memory.current").read_text(encoding="ascii")))
    return min(found) if found else None


def check_memory(settings: Settings) -> Health:
    """Room for the model on its device, before anything is loaded."""
    device = device_of(settings.model.device)
    try:
        need = model_bytes(settings)
    except OSError as error:
        return warning("memory", f"{settings.model.name} is not on this machine ({error})", "load it once: errata models fetch")
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info(device)[0], f"{device} ({torch.cuda.get_device_name(device)})"
    else:
        free, where = free_memory(), str(device)
    if free is None:
        return ok("memory", f"the model takes {gib(need)} on {where}; this system does not say what is free")
    said = f"the model takes {gib(need)} on {where}, {gib(free)} are free"
    smaller = "free some, take a larger device (model.device), or load it smaller (model.dtype bfloat16)"
    if free < need:
        return fault("memory", said, smaller)
    return warning("memory", f"{said}: little for edits", smaller) if free < COMFORT * need else ok("memory", said)


def check_model(settings: Settings) -> Health:
    """Load the model and let it go on from a text; not where it cannot fit."""
    if check_memory(settings).level == "fault":
        return fault("model", "not loaded: it does not fit", "see memory")
    begun = time.monotonic()
    model = base_model(settings)
    answer = model.generate(["The"], 1)[0]
    device = next(model.hf.parameters()).device
    return ok("model", f"{Path(settings.model.name).name} on {device} in {time.monotonic() - begun:.1f} s, goes on: {answer!r}")


def check_device(settings: Settings) -> Health:
    """The device that is asked for is there, and a GPU is not left idle by oversight."""
    device = device_of(settings.model.device)
    if device.type == "cpu" and torch.cuda.is_available():
        found = f"the CPU, and {torch.cuda.get_device_name(0)} is idle"
        return warning("device", found, "set model.device to auto, unless nights must give the same bits on every machine")
    return ok("device", f"{device}, {torch.get_num_threads()} threads, {os.cpu_count()} processors")


def check_disk(settings: Settings) -> Health:
    """Room for a night: a model as it is served is written whole, and patches and the database grow."""
    places = {settings.home.absolute(), Path(os.environ.get("PREFECT_HOME", settings.home)).absolute()}
    if "://" not in settings.store_url:
        places.add(Path(settings.store_url).absolute())
    need = LITTLE_BYTES
    with suppress(OSError):
        need += 2 * model_bytes(settings)
    free, place = min((shutil.disk_usage(_there(place)).free, str(place)) for place in places)
    said = f"{gib(free)} free for {place}"
    if free < LITTLE_BYTES:
        return fault("disk", said, "make room there: nights and Prefect's database will fail")
    return warning("disk", f"{said}; a night may need {gib(need)}", "make room there") if free < need else ok("disk", said)


def check_clock(settings: Settings) -> Health:
    """This machine's clock against the store's; seconds apart are within what a request takes."""
    asked = datetime.now(UTC)
    theirs = time_of(store_of(settings))
    apart = (theirs - asked).total_seconds()
    said = f"the store's clock is {abs(apart):.0f} s {'ahead' if apart > 0 else 'behind'}"
    if abs(apart) > CLOCK_S:
        return fault("clock", said, "set this machine's clock (NTP): S3 refuses requests, and the trail's times are wrong")
    return ok("clock", said)


def _there(place: Path) -> Path:
    return next(folder for folder in (place, *place.parents) if folder.exists())
