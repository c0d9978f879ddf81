"""The named instants at which a night is killed: every state reached, and inside every write that takes more than one."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

#: Steps of the flow, for saying where a random kill fell.
FLOW = ("begin", "reconcile", "ingest", "validate", "edit", "evaluate", "gate", "promote", "publish_report", "close")


@dataclass(frozen=True)
class Step:
    """Before or after a call of `place` (`module:name`), where one of its arguments, as text, contains `key`."""

    name: str
    place: str
    when: Literal["before", "after"]
    key: str = ""


STEPS = (
    Step("world seeded, templates not", "tasks.workspace:put_templates", "before"),
    Step("records in a transaction", "warehouse.database.connection:Warehouse.append", "after", "updates"),
    Step("records received, state not noted", "tasks.night.ingest:receive", "after"),
    Step("state received", "tasks.night.course:Night.reach", "after", "received"),
    Step("verdicts in a transaction", "tasks.night.validate:record_verdicts", "after"),
    Step("facts in a transaction", "tasks.night.validate:apply_fact_changes", "after"),
    Step("state validated", "tasks.night.course:Night.reach", "after", "validated"),
    Step("patch written beside its name", "pathlib:Path.replace", "before", "patch.safetensors."),
    Step("patch's tensors in place, header not", "pathlib:Path.replace", "after", "patch.safetensors."),
    Step("patch saved, ledger empty", "tasks.night.edit:record_made", "before"),
    Step("edits in a transaction", "tasks.night.edit:record_made", "after"),
    Step("edits in the ledger, night's note not written", "tasks.night.edit:keep_edited", "before"),
    Step("night's note written beside its name", "pathlib:Path.replace", "before", "edited.json."),
    Step("state edited", "tasks.night.course:Night.reach", "after", "edited"),
    Step("probes stored, nothing asked", "tasks.night.evaluate:at_checkpoint", "before"),
    Step("some answers cached", "tasks.workspace:save_predictions", "after"),
    Step("plain folder half written", "tasks.serving.plain_folder:materialise", "after"),
    Step("plain folder written, not noted", "tasks.serving.plain_folder:write_whole", "before"),
    Step("plain folder noted, nothing asked of it", "tasks.serving.plain_folder:write_whole", "after"),
    Step("report not saved", "tasks.night.evaluate:save_report", "before"),
    Step("report saved, state not noted", "tasks.night.evaluate:save_report", "after"),
    Step("state evaluated", "tasks.night.course:Night.reach", "after", "evaluated"),
    Step("decision in a transaction", "tasks.night.gate:save_decision", "after"),
    Step("state decided", "tasks.night.course:Night.reach", "after", "decided"),
    Step("canaries written beside their name", "pathlib:Path.replace", "before", "canaries.json."),
    Step("model written, not in the store", "tasks.night.promote:checkpoint_files", "before"),
    Step("object written beside its name", "warehouse.checkpoints.directory:sha256_file", "before", "/.store/tmp/"),
    Step("before the manifest", "warehouse.checkpoints.directory:DirectoryStore.create", "before", "manifests/"),
    Step("after the manifest", "warehouse.checkpoints.directory:DirectoryStore.create", "after", "manifests/"),
    Step("canaries in the store", "warehouse.checkpoints.directory:DirectoryStore.create", "after", "canaries/"),
    Step("before the channel moves", "warehouse.checkpoints.directory:DirectoryStore.compare_and_swap", "before"),
    Step("pointer written beside its name", "pathlib:Path.replace", "before", "/.store/tmp/"),
    Step("channel moved, warehouse not settled", "warehouse.checkpoints.directory:DirectoryStore.compare_and_swap", "after"),
    Step("settling in a transaction", "tasks.night.settle:settle_edits", "after"),
    Step("settled, trail not mirrored", "tasks.trail:mirror", "before"),
    Step("trail half mirrored", "warehouse.checkpoints.directory:DirectoryStore.create", "after", "audit/"),
    Step("summary not written", "tasks.reporting.publish_report:night_markdown", "after"),
    Step("told, line not written", "tasks.night.close:tell_of_night", "after"),
    Step("run's line in a transaction", "warehouse.nights.runs:advance_run", "after", "published"),
    Step("state published", "tasks.night.course:save_run", "after"),
)  # fmt: skip


def around(
    place: str, before: Callable[[tuple[Any, ...]], None] | None = None, after: Callable[[tuple[Any, ...]], None] | None = None
) -> None:  # fmt: skip
    """Call these with the arguments of every call of `place`; for the life of this process."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(args)
        result = plain(*args, **kwargs)
        if after is not None:
            after(args)
        return result

    setattr(owner, name, watched)


def at_step(step: Step, act: Callable[[], None]) -> None:
    """Act the first time that the step is reached."""

    def look(args: tuple[Any, ...]) -> None:
        if not step.key or any(isinstance(a, (str, Path)) and step.key in str(a) for a in args):
            act()

    around(step.place, **{step.when: look})
