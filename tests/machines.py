"""Make checkpoints from numbers that are the same everywhere and print their digests, or audit homes.

    python -m tests.machines checkpoints
    python -m tests.machines audit CONFIG.json [CONFIG.json ...]

Run as a process of its own under another instruction set or thread count (`SETTINGS`): libraries read these once, when
they are loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from editors.exact import on_grid
from editors.export.form import OF_BEFORE, PlainForm
from editors.export.plain import plain_model
from editors.model import EditableModel
from editors.patches.neurons import NeuronPatch
from editors.patches.slots import Slot, SlotPatch
from editors.patches.weight import LowRank, WeightPatch
from tests.awkward import awkward, awkward_slot, fixed
from tests.support import tiny_model
from warehouse.digests import digest_of_parts

#: Environment that makes the numerical libraries take the code path of another processor.
OTHER_INSTRUCTIONS = {
    "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
}  # fmt: skip
#: Name -> environment.
SETTINGS = {
    f"{name}, threads {threads}": {**instructions, "OMP_NUM_THREADS": str(threads)}
    for name, instructions in (("this processor", {}), ("an old one", OTHER_INSTRUCTIONS))
    for threads in (1, 2)
}
#: Those that differ most from a test's own process.
OTHERS = ("an old one, threads 2", "this processor, threads 2")


def run(setting: str, *arguments: str) -> Any:
    """What this program prints, run with the arguments under a setting."""
    clean = {k: v for k, v in os.environ.items() if k not in {*OTHER_INSTRUCTIONS, "OMP_NUM_THREADS"}}
    done = subprocess.run(
        [sys.executable, "-m", "tests.machines", *arguments], env={**clean, **SETTINGS[setting]},
        capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def audits(setting: str, homes: Sequence[Mapping[str, Any]], folder: Path) -> list[list[list[str]]]:
    """What the audit finds wrong in each home under a setting, by one process.

    Args:
        homes: the settings of each; its number of threads is left to the process.
        folder: where they are written down for the process.
    """
    paths = [folder / f"home-{i}.json" for i, _ in enumerate(homes)]
    for path, config in zip(paths, homes, strict=True):
        path.write_text(json.dumps({k: v for k, v in config.items() if k != "threads"}), encoding="utf-8")
    return run(setting, "audit", *map(str, paths))


def checkpoints(bad: bool = False) -> dict[str, str]:
    """Digest of the weights of each kind of checkpoint, by architecture and by what the checkpoint is made of.

    Args:
        bad: every tensor of the patches lies at an odd place in memory.
    """
    lay = awkward if bad else lambda t: t
    found = {}
    for kind in ("gpt2", "llama"):
        model = fixed_model(kind)
        site, name = model.anatomy.mlp.format(layer=1), model.anatomy.mlp_out.format(layer=2) + ".weight"
        shape = model.weight(model.anatomy.mlp_out, 2).shape
        slots = {s.subject: awkward_slot(s) if bad else s for s in map(fixed_slot, range(5))}
        first, second = list(slots)[:2], list(slots)[2:]
        model.push(SlotPatch(site, lay(fixed(32, seed=7)), 0.5, 0.5, {name: slots[name] for name in first}))
        model.push(SlotPatch(site, lay(fixed(32, seed=7)), 0.5, 0.5, {name: slots[name] for name in second}))
        found[f"{kind}, slots of before"] = tensors_digest(plain_model(model, OF_BEFORE).hf.state_dict())
        given = {site: torch.cat([answering(slots[name].states).expand(2, -1) for name in sorted(slots)])}
        found[f"{kind}, slots"] = tensors_digest(plain_model(model, PlainForm(given=given)).hf.state_dict())
        model.rollback(0)
        update = LowRank(lay(fixed(shape[0], 6, seed=8)), lay(fixed(shape[1], 6, seed=9)))
        model.push(WeightPatch({name: update}))
        found[f"{kind}, weights"] = tensors_digest(model.hf.state_dict())
        model.rollback(0)
        own = "gelu_tanh" if kind == "gpt2" else "silu"
        keys, biases, values = (lay(fixed(*shape, seed=10)) for shape in ((3, 32), (3,), (3, 32)))
        model.push(NeuronPatch(site, own, 0, keys, biases, values))
        found[f"{kind}, neurons of before"] = tensors_digest(plain_model(model, OF_BEFORE).hf.state_dict())
    return found


def answering(states: torch.Tensor) -> torch.Tensor:
    """A row that answers 1 to some states, rounded so far that no machine's last bits show."""
    row = torch.linalg.pinv(states.double()) @ torch.ones(len(states), dtype=torch.float64)
    return ((row * 256).round() / 256).float()


def fixed_model(kind: str) -> EditableModel:
    """The tiny model with weights that are the same on every machine."""
    made = tiny_model(kind)
    for number, (_, parameter) in enumerate(sorted(made.hf.named_parameters())):
        parameter.data.copy_(0.1 * fixed(*parameter.shape, seed=100 + number))
    return EditableModel(made.hf, made.tokenizer)


def fixed_slot(number: int) -> Slot:
    """A slot of the tiny models, as an editor would store it."""
    states, vector, value = (fixed(n, 32, seed=20 + 3 * number + i) for i, n in enumerate((4, 1, 1)))
    own, foreign = 2.0 + number / 8, number / 16
    return Slot(f"subject {number}", (), states, on_grid(vector[0]).float(), own, foreign, value[0], fixed(32, seed=7))


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Short digest of tensors by name, whatever library writes them into which file."""
    return digest_of_parts([(name, t.contiguous().numpy().tobytes()) for name, t in sorted(tensors.items())])[:16]


def audited(config: Path) -> list[list[str]]:
    """What the audit finds wrong in a home: pairs of what and found."""
    from tasks.recheck.audit import audit
    from tasks.settings import configure

    report = audit(configure(json.loads(config.read_text(encoding="utf-8"))))
    return [[b.what, b.found] for b in report.breaks]


if __name__ == "__main__":
    print(json.dumps(checkpoints() if sys.argv[1] == "checkpoints" else [audited(Path(config)) for config in sys.argv[2:]]))
