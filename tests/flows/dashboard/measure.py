"""Sizes and times of the pages at a stated scale: `python -m tests.flows.dashboard.measure`, for docs/DASHBOARD.md.

Times are those of a page that was asked for once before, the best of some tries; on a machine that does other work beside it,
the seconds of processor that it took say more than those that went by.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from fastapi.testclient import TestClient

from flows.dashboard.app import create_app
from tasks.settings import configure
from tests.flows.dashboard.generated import generate, subject_key
from warehouse.dashboard.published import publish


def pages(nights: int) -> dict[str, str]:
    """Addresses that are measured, with what each is."""
    middle = nights * 3 // 4
    return {
        "overview": "/",
        "overview, 180 nights": "/?nights=180",
        "nights": "/nights",
        "nights, last page": f"/nights?page={-(-nights // 25)}",
        "night": "/nights/main/night-MIDDLE",
        "night, search in all answers": f"/nights/main/night-MIDDLE?all=1&q=Subject+{middle}+7",
        "facts, search": f"/facts?q=subject+{middle}",
        "fact": f"/fact?subject={subject_key(middle, 5)}",
        "quarantine": "/queue",
        "lineage": "/lineage/main",
        "leaderboards": "/leaderboards",
        "audit": "/audit",
        "policies": "/policies",
    }


def main() -> None:
    """Print a Markdown table."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--nights", type=int, default=1000)
    asked.add_argument("--edits", type=int, default=100, help="of each night")
    asked.add_argument("--tries", type=int, default=5)
    asked.add_argument("--warehouse", type=Path, help="one that was generated before with the same numbers")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = configure({"home": folder})
        source = given.warehouse or settings.warehouse_path
        if not source.exists():
            begun = time.monotonic()
            generate(source, given.nights, given.edits)
            print(f"generated in {time.monotonic() - begun:.0f} s", flush=True)
        begun = time.monotonic()
        publish(source, settings.published_path)
        size, spent = settings.published_path.stat().st_size / 1e6, time.monotonic() - begun
        print(f"published {size:,.0f} MB in {spent:.1f} s\n\n| page | kB | ms | ms of processor |\n|---|---|---|---|")
        with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
            rows = client.get("/data/nights/nights.json").json()["rows"]
            middle = sorted(row["night"] for row in rows)[given.nights * 3 // 4 - 1]
            for name, address in pages(given.nights).items():
                print(_line(client, name, address.replace("night-MIDDLE", middle), given.tries), flush=True)


def _line(client: TestClient, name: str, address: str, tries: int) -> str:
    client.get(address)
    spent = []
    for _ in range(tries):
        clock, processor = time.perf_counter(), time.process_time()
        answer = client.get(address)
        spent.append((time.perf_counter() - clock, time.process_time() - processor))
        assert answer.status_code == 200, address
    clock, processor = (1000 * min(times) for times in zip(*spent, strict=True))
    return f"| {name} | {len(answer.content) / 1000:.1f} | {clock:.0f} | {processor:.0f} |"


if __name__ == "__main__":
    main()
