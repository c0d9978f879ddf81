"""docs/REQUESTS.md: its example is promoted by the embedded model under the shipped policy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.conftest import Home
from warehouse.records import EditRequest

PAGE = (Path(__file__).parents[2] / "docs" / "REQUESTS.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("bare_nights")
def test_the_pages_example_is_promoted(prepared_home: Callable[[Path], Path], tmp_path: Path) -> None:
    lines = re.findall(r"```jsonl\n(.*?)```", PAGE, re.S)[0].strip().splitlines()
    required = {name for name, field in EditRequest.model_fields.items() if field.is_required()} - {"request_id"}
    assert all(set(json.loads(line)) == required for line in lines)
    (tmp_path / "updates").mkdir()
    # One line is a night as well.
    (tmp_path / "updates" / "first.jsonl").write_text(lines[1] + "\n", encoding="utf-8")
    source = {"kind": "requests", "path": str(tmp_path / "updates")}
    home = Home({"home": str(prepared_home(tmp_path / "home")), "source": source, "threads": 1})
    run = home.run("first")
    assert (run.verdict, run.accepted, run.edited) == ("promote", 1, 1), run
    assert all(f"`{name}`" in PAGE for name in EditRequest.model_fields if name not in ("source", "other_relations"))
