"""Letters of other scripts that look like Latin ones: our own small table, `confusables.csv`."""

from __future__ import annotations

import csv
from functools import cache

from warehouse.reference import HERE


@cache
def look_alikes() -> dict[str, str]:
    """Character -> the Latin letter that it looks like."""
    with (HERE / "confusables.csv").open(encoding="utf-8", newline="") as handle:
        return {chr(int(row["character"].removeprefix("U+"), 16)): row["looks_like"] for row in csv.DictReader(handle)}
