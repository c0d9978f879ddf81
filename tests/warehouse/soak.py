"""The live source under every fault at once, its client killed again and again.

    python -m tests.warehouse.soak --kills 20 --faults 0.05

A replay server runs in this process. The client is `errata ingest wikidata` as a process of its own, which SIGKILL ends
at a random moment after it has reached the stream; the last one runs to the end. What the warehouse holds then is
compared with what one undisturbed run brings.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.warehouse.live import moving_items
from warehouse.database.connection import Warehouse
from warehouse.ingest.stream_tables import read_cursor
from warehouse.stream.events import KEPT, StreamEvent, parse_event
from warehouse.stream.recording import Recording
from warehouse.stream.replay import STREAM_PATH, Faults, ReplayServer, serving

ROOT = Path(__file__).parent.parent.parent
NIGHT = "night-soak"


@dataclass(frozen=True)
class SoakReport:
    """What was done to the client, and what the warehouse held afterwards."""

    frames: int
    kills: int
    kills_after_first_write: int
    connections: int
    faults: dict[str, int]
    seconds: float
    expected_events: int
    stored_events: int
    missing_events: int
    duplicate_events: int
    is_cursor_right: bool
    pending: int
    expected_records: int
    records: int
    differing_records: int
    duplicate_requests: int


def soak(folder: Path, recording: Recording, *, kills: int, faults: float, rate: float, seed: int = 0) -> SoakReport:
    """Run the soak; `rate` is in events a second, so that the kills fall into the stream."""
    start, chances = time.monotonic(), random.Random(seed)
    plain = folder / "plain"
    with serving(recording) as server:
        _finish(server, plain)
    done = killed = 0
    with serving(recording, Faults.of_every_kind(faults, seed), rate=rate) as server:
        home = folder / "soaked"
        while done < kills:
            if _kill_once(server, home, chances):
                done += 1
                killed += (home / "warehouse.duckdb").exists()
        _finish(server, home)
        stream, met, connections = server.url + STREAM_PATH, dict(server.met), len(server.resumed)
    expected, wanted = _updates(plain), _kept(recording)
    found = _updates(home)
    with Warehouse.open(home / "warehouse.duckdb") as wh:
        keys = [row["event_key"] for row in wh.rows("SELECT event_key FROM stream_events")]
        pending = wh.scalar("SELECT count(*) FROM stream_events ANTI JOIN stream_outcomes USING (event_key)")
        cursor = read_cursor(wh, stream).last_event_id
    slots = Counter((json.loads(raw)["statement_id"], json.loads(raw)["revision"]["new"]) for raw in found.values())
    return SoakReport(
        frames=len(recording.frames), kills=done, kills_after_first_write=killed, connections=connections, faults=met,
        seconds=round(time.monotonic() - start, 1), expected_events=len(wanted), stored_events=len(keys),
        missing_events=len(wanted - set(keys)), duplicate_events=len(keys) - len(set(keys)),
        is_cursor_right=cursor == recording.wire_id(len(recording.frames) - 1), pending=pending,
        expected_records=len(expected), records=len(found),
        differing_records=len(set(expected.items()) ^ set(found.items())),
        duplicate_requests=sum(number - 1 for number in slots.values()),
    )  # fmt: skip


def _client(server: ReplayServer, home: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "ERRATA_HOME": str(home), "ERRATA_WIKIDATA__BACKOFF": "0.02", "ERRATA_WIKIDATA__BACKOFF_MAX": "0.2",
        "ERRATA_WIKIDATA__FLUSH": "0.5", "ERRATA_WIKIDATA__BATCH": "40", "ERRATA_WIKIDATA__RETRIES": "12",
    }  # fmt: skip
    command = [sys.executable, "-m", "flows.cli", "ingest", "wikidata", "--replay", server.url, "--night", NIGHT,
               "--idle", "1", "--json"]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _kill_once(server: ReplayServer, home: Path, chances: random.Random) -> bool:
    """Start the client, let it reach the stream, kill it somewhere in the next second; False where it ended before."""
    reached = len(server.resumed)
    process = _client(server, home)
    while process.poll() is None and len(server.resumed) == reached:
        time.sleep(0.01)
    time.sleep(chances.uniform(0, 1.0))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def _finish(server: ReplayServer, home: Path) -> dict[str, Any]:
    process = _client(server, home)
    out, problems = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(f"the client ended with {process.returncode}: {out}{problems}")
    return json.loads(out)


def _updates(home: Path) -> dict[str, str]:
    with Warehouse.open(home / "warehouse.duckdb") as wh:
        return {row["record_id"]: row["raw"] for row in wh.rows("SELECT record_id, raw FROM updates")}


def _kept(recording: Recording) -> set[str]:
    events = [parse_event(frame.data) for frame in recording.frames]
    return {event.key for event in events if isinstance(event, StreamEvent) and event.action in KEPT}


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill and confuse the live source's client, then look what is there.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--faults", type=float, default=0.05)
    parser.add_argument("--edits", type=int, default=15, help="of each of 20 items")
    parser.add_argument("--rate", type=float, default=60.0, help="events a second")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recording = moving_items(20, asked.edits, noise=1)
        report = soak(
            Path(folder), recording, kills=asked.kills, faults=asked.faults, rate=asked.rate, seed=asked.seed
        )  # fmt: skip
    print(json.dumps(asdict(report), indent=1))


if __name__ == "__main__":
    main()
