"""Kill nights by SIGKILL at random instants and at every named step, run them again, and compare with an undisturbed one.

    python -m tests.flows.kill --kills 200

Two nights of the small world: the first into an empty home, the second on the head that the first left. Each attempt is
a fork of this process, which has run both nights once, so that no import is paid twice. A kill counts where the night
was still going on. Right after it the channel must serve what it served before, or the whole new checkpoint; after the
rerun the store, the warehouse and the trail must be those of the undisturbed night. Of four reruns one is killed too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.recheck.audit import audit
from tasks.settings import configure
from tests.flows.conftest import Home, bare
from tests.flows.kill_steps import FLOW, STEPS, Step, around, at_step
from tests.flows.nights import config_of, write_before_nights, write_world
from warehouse.checkpoints.manifests import manifest_at, pointer_of
from warehouse.checkpoints.promotion import verify

#: One of so many reruns is killed as well.
AGAIN = 4
#: What an undisturbed night leaves in the warehouse, without times and what is made of them.
ROWS = {
    "records": "SELECT source, record_id, night, received_seq FROM updates ORDER BY ALL",
    "verdicts": "SELECT * FROM verdicts ORDER BY ALL",
    "requests": "SELECT request_id, content_digest FROM edit_requests ORDER BY ALL",
    "facts": "SELECT count(*) AS facts, count(known_to_night) AS ended FROM facts",
    "batches": "SELECT lineage, batch_id, request_ids FROM batches ORDER BY ALL",
    "edits": "SELECT edit_seq, edit_id, request_id, patch_digest, status, checkpoint_id, reason FROM edits ORDER BY ALL",
    "predictions": "SELECT * FROM predictions ORDER BY ALL",
    "reports": "SELECT report_id, before, after, probe_set_digest FROM reports ORDER BY ALL",
    "decisions": "SELECT decision_id, verdict FROM decisions ORDER BY ALL",
    "checkpoints": "SELECT lineage, checkpoint_id, parent, night, verdict FROM checkpoints ORDER BY ALL",
    "heads": "SELECT lineage, seq, checkpoint_id, reason FROM heads ORDER BY ALL",
    "runs": "SELECT night, state, records, accepted, edited, scores::TEXT, verdict, checkpoint_id FROM runs ORDER BY ALL",
    "trail": "SELECT seq, kind, subject, lineage, actor, reason FROM audit ORDER BY seq",
}  # fmt: skip


class Wrong(Exception):
    """A killed night did not end as the undisturbed one."""


# ---------------------------------------------------------------- one night


@dataclass(frozen=True)
class Scene:
    """A night to be killed, the home that it begins with, and how it ends when nothing disturbs it."""

    night: str
    world: dict[str, Any]
    before: Path | None
    ended: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def home(self, folder: Path) -> Home:
        shutil.rmtree(folder, ignore_errors=True)
        if self.before is not None:
            shutil.copytree(self.before, folder)
        return Home(config_of(self.world, folder))


def state_of(home: Home) -> dict[str, Any]:
    """What must be equal however often the night was killed.

    Raises:
        Wrong: the audit or the warehouse's check finds something, or something is left over.
    """
    breaks = audit(configure(home.config)).breaks
    if breaks:
        raise Wrong(f"the audit finds: {breaks[0]}")
    if findings := home.findings():
        raise Wrong(f"the warehouse's check finds: {findings[0]}")
    if left := [p.name for p in home.path.rglob("*") if p.name.endswith(".new") or p.parent.match("*/.store/tmp")]:
        raise Wrong(f"left over: {left}")
    # Reports hold the seconds that editing took; decisions, manifests and entries of the trail bear the time.
    timed = ("reports/", "decisions/", "manifests/", "channels/", "audit/")
    objects = [
        key.split("/")[0] + "/" + key.rsplit("/", 1)[1] if key.startswith(timed) else f"{key} {home.store.digest(key)}"
        for key in sorted(home.store.list())
    ]
    rows = {name: home.rows(sql) for name, sql in ROWS.items()}
    return json.loads(json.dumps({"objects": objects, **rows}, default=str))


def served(home: Home) -> str | None:
    """The checkpoint that production serves, verified whole; None where no channel was ever moved."""
    found = pointer_of(home.store, "production")
    if found is None:
        return None
    manifest = manifest_at(home.store, found[0])
    verify(home.store, manifest)
    return manifest.checkpoint.checkpoint_id


# ---------------------------------------------------------------- forks


@dataclass(frozen=True)
class Child:
    """How a fork ended: killed or not, how far it had come, and what it handed back."""

    killed: bool
    trace: tuple[str, ...]
    seconds: float
    result: dict[str, Any]

    @property
    def where(self) -> str:
        """`step of the flow, after state`."""
        states = [line[1:] for line in self.trace if line.startswith("=")]
        steps = [line for line in self.trace if not line.startswith("=")]
        return f"{states[-1] if states else 'nothing'} reached, in {steps[-1] if steps else 'the lock'}"


@dataclass(frozen=True)
class Fork:
    """A fork under way; `scratch` holds its answer and its log, so that two at once need two folders."""

    scratch: Path
    pid: int
    reader: int
    start: float

    @classmethod
    def of(cls, scratch: Path, work: Callable[[], dict[str, Any]], step: Step | None = None) -> Fork:
        """Begin `work` in a fork, which kills itself where it reaches that step."""
        scratch.mkdir(exist_ok=True)
        (scratch / "answer.json").unlink(missing_ok=True)
        reader, writer = os.pipe()
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _child(writer, scratch / "child.log", scratch / "answer.json", work, step)
        os.close(writer)
        return cls(scratch, pid, reader, start)

    def end(self, after_s: float | None = None) -> Child:
        """Wait for it, or kill it after that time.

        Raises:
            Wrong: its work raised; the message has the traceback.
        """
        if after_s is not None:
            time.sleep(after_s)
            os.kill(self.pid, signal.SIGKILL)
        with os.fdopen(self.reader, "rb") as trace:
            lines = trace.read().decode().split()
        _, status = os.waitpid(self.pid, 0)
        seconds = time.monotonic() - self.start
        killed = os.WIFSIGNALED(status)
        if killed and os.WTERMSIG(status) != signal.SIGKILL:
            raise Wrong(f"signal {os.WTERMSIG(status)} after {lines}")
        result = {} if killed else json.loads((self.scratch / "answer.json").read_text(encoding="utf-8"))
        if "error" in result:
            raise Wrong(result["error"])
        return Child(killed, tuple(lines), seconds, result)


def fork(scratch: Path, work: Callable[[], dict[str, Any]], *, after_s: float | None = None, step: Step | None = None) -> Child:
    """Run `work` in a fork to its end, or to its death at that time or step. Raises as `Fork.end`."""
    return Fork.of(scratch, work, step).end(after_s)


def _child(writer: int, log: Path, answer: Path, work: Callable[[], dict[str, Any]], step: Step | None) -> None:
    """The fork's life: never returns."""
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        for name in FLOW:
            around(f"flows.nightly:{name}", before=lambda _args, name=name: _tell(writer, name))
        around("tasks.night.course:Night.reach", after=lambda args: _tell(writer, f"={args[1]}"))
        around("tasks.night.course:save_run", after=lambda _args: _tell(writer, "=published"))
        if step is not None:
            at_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
        result = work()
    except BaseException:
        result = {"error": traceback.format_exc()}
    answer.write_text(json.dumps(result), encoding="utf-8")
    os._exit(0)


def _tell(writer: int, line: str) -> None:
    os.write(writer, f"{line}\n".encode())


# ---------------------------------------------------------------- kills


@dataclass
class Yard:
    """Nights that are killed in one scratch folder, and what was counted."""

    scratch: Path
    scenes: tuple[Scene, ...]
    chance: random.Random
    where: Counter[str] = field(default_factory=Counter)
    again: int = 0

    def _attempt(self, scene: Scene, home: Home, **kill: Any) -> Child:
        before = served(home)
        child = fork(self.scratch, lambda: _run(home, scene.night), **kill)
        now = served(home)
        if now != before and now != scene.ended["objects_head"]:
            raise Wrong(f"after a kill ({child.where}) production serves {now}")
        return child

    def _end(self, scene: Scene, home: Home, how: str) -> None:
        """Run to the end and compare."""
        child = fork(self.scratch, lambda: _run(home, scene.night) | _state(home))
        for name, wanted in scene.ended.items():
            if child.result.get(name) != wanted:
                raise Wrong(f"{scene.night}, {how}: {name} differ: {_difference(child.result.get(name), wanted)}")

    def random_kill(self) -> None:
        """Kill at an instant drawn evenly over the night; one that had ended by then is tried again."""
        scene = self.chance.choice(self.scenes)
        while True:
            home = scene.home(self.scratch / "home")
            child = self._attempt(scene, home, after_s=self.chance.uniform(0, scene.seconds))
            if child.killed:
                break
        how = child.where
        if self.chance.randrange(AGAIN) == 0:
            second = self._attempt(scene, home, after_s=self.chance.uniform(0, scene.seconds))
            self.again += second.killed
            how += f", then {second.where}"
        self._end(scene, home, how)
        self.where[child.where] += 1

    def named_kill(self, scene: Scene, step: Step) -> None:
        home = scene.home(self.scratch / "home")
        self._at(scene, home, step)
        self._end(scene, home, step.name)

    def chained_kills(self, scene: Scene) -> None:
        """One night that is killed at every named step, run after run."""
        home = scene.home(self.scratch / "home")
        for step in STEPS:
            self._at(scene, home, step)
        self._end(scene, home, "killed at every step")

    def _at(self, scene: Scene, home: Home, step: Step) -> None:
        if not self._attempt(scene, home, step=step).killed:
            raise Wrong(f"{scene.night} never came to the step {step.name!r} ({step.place})")


def _run(home: Home, night: str) -> dict[str, Any]:
    home.run(night)
    return {}


def _state(home: Home) -> dict[str, Any]:
    return {**state_of(home), "objects_head": served(home)}


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, list) and isinstance(wanted, list):
        more, less = ([row for row in a if row not in b] for a, b in ((found, wanted), (wanted, found)))
        return f"{len(found)} rows, {len(wanted)} wanted; not wanted {more[:3]}, missing {less[:3]}"
    return f"{found}, wanted {wanted}"


def prepare(scratch: Path, only: str | None = None, *, asked: bool = False) -> tuple[Scene, ...]:
    """Both nights (or one), run undisturbed in forks of this process, which the first night has warmed.

    Args:
        asked: the first night begins in a home whose base was asked what it knows, not in an empty one.
    """
    world = write_world(scratch / "world")
    first = Scene("night-01", world, write_before_nights(world) if asked else None)
    first.home(scratch / "after-first").run("night-01")
    second = Scene("night-02", world, scratch / "after-first")
    scenes = []
    for scene in (s for s in (first, second) if only in (None, s.night)):
        home = scene.home(scratch / "home")
        timed = fork(scratch, lambda home=home, scene=scene: _run(home, scene.night))
        ended = fork(scratch, lambda home=home: _state(home)).result
        scenes.append(Scene(scene.night, world, scene.before, ended, timed.seconds))
    return tuple(scenes)


@contextmanager
def own_folder() -> Iterator[Path]:
    """A scratch folder, and this process made fit to fork: one thread, no Prefect."""
    torch.set_num_threads(1)
    bare(pytest.MonkeyPatch())
    with tempfile.TemporaryDirectory() as folder:
        # Libraries that a kill leaves no time to tidy up after themselves put their folders here.
        os.environ["TMPDIR"] = tempfile.tempdir = str(Path(folder) / "tmp")
        Path(tempfile.tempdir).mkdir()
        yield Path(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=int(os.environ.get("ERRATA_KILLS", "200")), help="random instants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chain", action="store_true", help="all named steps in one night, instead of a night each")
    parser.add_argument("--night", choices=("night-01", "night-02"), help="only this night")
    asked = parser.parse_args()
    start = time.monotonic()
    with own_folder() as scratch:
        yard = Yard(scratch, prepare(scratch, asked.night), random.Random(asked.seed))
        for scene in yard.scenes:
            print(f"{scene.night}: {scene.seconds:.1f} s undisturbed", flush=True)
        named = 0
        try:
            for scene in yard.scenes:
                if asked.chain:
                    yard.chained_kills(scene)
                else:
                    for step in STEPS:
                        yard.named_kill(scene, step)
                named += len(STEPS)
                print(f"{scene.night}: killed at {len(STEPS)} named steps", flush=True)
            for number in range(1, asked.kills + 1):
                yard.random_kill()
                if number % 20 == 0:
                    print(f"{number} random kills, {time.monotonic() - start:.0f} s", flush=True)
        except Wrong as wrong:
            print(f"WRONG: {wrong}", flush=True)
            return 1
    for where, count in sorted(yard.where.items()):
        print(f"{count:5d}  {where}")
    print(f"{asked.kills} kills at random instants ({yard.again} reruns killed too), {named} at named steps, "
          f"0 wrong, {time.monotonic() - start:.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
