"""What the live source's first half costs: parse, filter and store events from a recorded file.

    python -m tasks.speed.ingest_speed 1000000

prints one JSON document with events a second and the memory at a tenth and at the end. The recording is the embedded
sample over and over; ids, revisions and items are made up anew each time, so that every event is a new one.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from warehouse.database.connection import Warehouse
from warehouse.ingest.live_ingest import Filters, IngestLimits, LiveIngest
from warehouse.reference import HERE
from warehouse.stream.events import KEPT, StreamEvent, parse_event
from warehouse.stream.recording import load_recording
from warehouse.stream.sse import recorded_frames

NIGHT = "night-bench"
_REVISION = re.compile(r'"new":24[0-9]{8}')
_PAGE_MB = resource.getpagesize() / 2**20


@dataclass(frozen=True)
class IngestSpeed:
    """Of one run. `events_per_cpu_s` leaves out what others took of the core.

    `rss_early_mb` is the resident memory after a tenth of the events, `rss_late_mb` at the end.
    """

    events: int
    stored: int
    expected: int
    wall_s: float
    cpu_s: float
    events_per_s: float
    events_per_cpu_s: float
    rss_before_mb: float
    rss_early_mb: float
    rss_late_mb: float
    warehouse_mb: float


def write_recording(path: Path, events: int) -> int:
    """Write a stream of so many events; returns how many of them are to be stored."""
    frames = load_recording(HERE / "stream").frames
    samples = [frame for frame in frames if isinstance(parse_event(frame.data), StreamEvent)]
    by_id = {json.loads(frame.data)["meta"]["id"]: frame.data for frame in samples}
    kept = [getattr(parse_event(data), "action", "") in KEPT for data in by_id.values()]
    # Cut at what changes from one event to the next.
    parts = [(data.split(own_id), _REVISION.findall(data)) for own_id, data in by_id.items()]
    assert all(len(pieces) == 2 for pieces, _ in parts), "an event names its id once"
    with path.open("w", encoding="utf-8") as out:
        out.write(":ok\n\n")
        for number in range(events):
            (head, tail), revisions = parts[number % len(parts)]
            for revision in revisions:
                tail = tail.replace(revision, f'"new":{2_400_000_000 + number}')
            data = f"{head}{number:08x}-0000-4000-8000-{number:012x}{tail}"
            out.write(f'event: message\nid: [{{"topic":"bench","partition":0,"offset":{number}}}]\ndata: {data}\n\n')
    return sum(kept[number % len(kept)] for number in range(events))


def ingest_speed(recording: Path, home: Path, events: int, expected: int) -> IngestSpeed:
    """Read a recording into a new warehouse, with its own short write for every batch, as the live source does."""
    before, early = _rss_mb(), 0.0
    database = home / "bench.duckdb"

    def opened() -> AbstractContextManager[Warehouse]:
        return Warehouse.open(database)

    with opened():
        pass
    run = LiveIngest(opened, "bench", NIGHT, None, Filters(), IngestLimits(batch=5_000, flush_s=3600.0))

    def watched() -> Iterator[object]:
        nonlocal early
        for number, frame in enumerate(recorded_frames([recording])):
            if number == events // 10:
                early = _rss_mb()
            yield frame

    wall, cpu = time.perf_counter(), time.process_time()
    done = run.run(watched())  # pyright: ignore[reportArgumentType]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return IngestSpeed(
        events=done.frames,
        stored=done.stored,
        expected=expected,
        wall_s=wall,
        cpu_s=cpu,
        events_per_s=done.frames / wall,
        events_per_cpu_s=done.frames / cpu,
        rss_before_mb=before,
        rss_early_mb=early,
        rss_late_mb=_rss_mb(),
        warehouse_mb=database.stat().st_size / 2**20,
    )


def _rss_mb() -> float:
    """Resident memory now; where the system does not say, the largest so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * _PAGE_MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of the live source's first half.")
    parser.add_argument("events", type=int, nargs="?", default=100_000)
    events = parser.parse_args().events
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "bench.sse"
        expected = write_recording(recording, events)
        speed = ingest_speed(recording, Path(folder), events, expected)
    sys.stdout.write(json.dumps(asdict(speed), indent=1) + "\n")


if __name__ == "__main__":
    main()
