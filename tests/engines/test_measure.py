"""The table of docs/ENGINES.md is the kept rows', and a row that is wrong is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engines import measure, vllm
from tests.engines.measure import PAGE, num_lost, page_with, rows, wrong
from tests.engines.models import Asked

GOOD: dict[str, Any] = {
    "model": "smollm2", "engine": "vllm", "dtype": "float32", "edits": 3, "held": 3, "others": 10,
    "audited": 10, "lost": 0, "base_as_transformers": 10,
    "edited_as_transformers": 10, "edited_as_base": 4, "edited_as_base_in_transformers": 4,
}  # fmt: skip


def test_the_page_has_the_rows_that_were_measured_and_none_is_wrong() -> None:
    assert {"llama.cpp", "vllm"} <= {row["engine"] for row in rows()}
    assert page_with(PAGE.read_text(encoding="utf-8")) == PAGE.read_text(encoding="utf-8")
    assert not [why for row in rows() if (why := wrong(row))]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"held": 2}, "smollm2 in vllm as float32: 2 of 3 edits hold"),
        ({"dtype": "Q8_0", "held": 0}, "smollm2 in vllm as Q8_0: 0 of 3 edits hold"),
        ({"edited_as_transformers": 9}, "smollm2 in vllm as float32: 9 of 10 answers are those of transformers"),
        ({"edited_as_transformers": 9, "audited": 8, "dtype": "bfloat16"}, ""),
        ({"audited": 9}, ""),
        ({"lost": 1, "dtype": "bfloat16"}, ""),
        (
            {"lost": 1, "dtype": "bfloat16", "model": "smollm2, slots"},
            "smollm2, slots in vllm as bfloat16: 1 of 10 bystanders are lost that the base keeps",
        ),
    ],
)
def test_a_lost_edit_and_another_answer_in_float32_are_told(change: dict[str, Any], words: str) -> None:
    assert wrong(GOOD | change) == words


def test_a_bystander_is_lost_where_the_edited_folder_alone_answers_otherwise() -> None:
    asked = Asked({"edit": "x"}, ("a", "b", "c", "d"), base=("1",) * 5, audited=("x", "1", "1", "1", "2"))
    #                     the edit, lost, lost by the base too, kept, touched by the edit in the hooked model too
    assert num_lost(asked, ["1", "1", "9", "1", "1"], ["x", "9", "9", "1", "9"]) == 1


def test_a_row_that_is_measured_again_takes_the_place_of_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ROWS", tmp_path / "rows.json")
    for row in (GOOD, GOOD | {"dtype": "float16"}, GOOD | {"held": 2}, GOOD | {"model": "reference"}):
        measure.keep(row)
    assert [(r["model"], r["dtype"], r["held"]) for r in rows()] == [
        ("reference", "float32", 3), ("smollm2", "float32", 2), ("smollm2", "float16", 3)
    ]  # fmt: skip


def test_a_server_that_ends_before_it_answers_is_told_with_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no such dtype >&2\nexit 3\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(vllm, "PYTHON", program)
    with pytest.raises(RuntimeError, match=r"ended with 3 .*\n.*no such dtype"), vllm.serving(tmp_path, "x", tmp_path / "log"):
        pass
    monkeypatch.setattr(vllm, "PYTHON", tmp_path / "none")
    with pytest.raises(RuntimeError, match="make serving"), vllm.serving(tmp_path, "x", tmp_path / "log"):
        pass
