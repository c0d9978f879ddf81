"""Screenshots of the pages for docs/: `python -m tests.flows.dashboard.pictures HOME`, over a home of the demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.dashboard.app import create_app
from tasks.settings import configure
from tasks.workspace import publish_copy
from tests.flows.dashboard.browser import chromium, prefer, served, sized

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "dashboard"
#: Of one picture: they are kept in the repository for ever.
MOST_BYTES = 150_000
WIDTH, HEIGHT = 1000, 750
#: Name of the picture -> the page.
PICTURES = {
    "overview": "/", "nights": "/nights", "night": "/nights/main/{night}", "answers": "/nights/main/{night}#answers",
    "fact": "/fact?subject={subject}", "queue": "/queue", "lineage": "/lineage/main",
    "leaderboards": "/leaderboards", "audit": "/audit", "policy": "/policies/{policy}",
}  # fmt: skip


def main() -> None:
    """Write one PNG for each page, and one in the dark on a phone."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("home", type=Path)
    settings = configure({"home": str(asked.parse_args().home)})
    publish_copy(settings)
    FOLDER.mkdir(exist_ok=True)
    with served(create_app(settings)) as url, chromium(WIDTH, HEIGHT) as driver:
        found = _examples(url)
        prefer(driver, "light")
        for name, address in PICTURES.items():
            driver.get(url + address.format(**found))
            _keep(driver.get_screenshot_as_png(), name)
        prefer(driver, "dark")
        with sized(driver, 390, 844):
            driver.get(url + "/")
            _keep(driver.get_screenshot_as_png(), "phone")


def _examples(url: str) -> dict[str, str]:
    import httpx

    def rows(address: str) -> list[dict[str, str]]:
        return httpx.get(url + address, trust_env=False, timeout=60).json()["rows"]

    night = rows("/data/nights/nights.json")[-1]["night"]
    edits = rows(f"/data/nights/main/{night}/edits.json")
    subject = next(row["subject_id"] for row in edits if row["status"] == "active")
    return {"night": night, "subject": subject, "policy": rows("/data/policies/policies.json")[0]["policy_digest"]}


def _keep(picture: bytes, name: str) -> None:
    assert len(picture) < MOST_BYTES, f"{name}.png has {len(picture):,} bytes"
    (FOLDER / f"{name}.png").write_bytes(picture)


if __name__ == "__main__":
    main()
