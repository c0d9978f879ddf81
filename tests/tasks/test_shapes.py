"""What a device does with a shape, on the tiny one: numbers for each editor, and a failure is a line of the table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from editors.errors import UnknownEditor
from editors.model import EditableModel
from flows.cli import app
from tasks.speed import shapes
from tasks.speed.shapes import EDITORS, SHAPES, measure_shape, random_model, requests_of, shape_markdown
from warehouse.errors import UsageError

CPU = torch.device("cpu")


def test_the_model_is_random_bf16_and_the_same_each_time() -> None:
    state = torch.random.get_rng_state()
    model = random_model("tiny", CPU)
    assert model.hf.dtype == torch.bfloat16 and torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.read_base_digest() == random_model("tiny", CPU).read_base_digest() != model.base_digest
    with pytest.raises(UsageError, match="8b, 1b, tiny"):
        random_model("9b", CPU)
    with pytest.raises(UnknownEditor, match="memmit"):
        measure_shape("tiny", CPU, {"memmit": 1})


def test_every_editor_has_a_row_for_one_edit_and_one_for_many() -> None:
    lines: list[str] = []
    result = measure_shape("tiny", CPU, dict.fromkeys(EDITORS, 2), probes=8, report=lines.append)
    assert [(c.editor, c.edits, c.failed) for c in result.edits] == [(name, n, "") for name in EDITORS for n in (1, 2)]
    assert all(c.edit_s > 0 and c.prepare_s >= 0 and c.peak_share >= 0 for c in result.edits)
    assert result.probes_per_s > 0 and result.matmul_share > 0 and len(lines) == 2 + len(result.edits)
    page = shape_markdown(result)
    assert result.machine in page and "| memit | 2 |" in page


def test_an_editor_that_fails_says_why_and_the_next_one_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shapes._edited

    def fails(model: EditableModel, editor: object, *more: object) -> object:
        if editor.card.name == "ft_m":  # pyright: ignore[reportAttributeAccessIssue]
            raise RuntimeError("out of | memory")
        return real(model, editor, *more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(shapes, "_edited", fails)
    monkeypatch.setattr(shapes, "EDITORS", {"ft_m": 2, "grace": 2})
    out = tmp_path / "page.md"
    done = CliRunner().invoke(app, ["device", "--shape", "tiny", "--device", "cpu", "--out", str(out)])
    assert done.exit_code == 0, done.output
    page = out.read_text()
    assert "| ft_m | 1 | RuntimeError: out of / memory |" in page and "| grace | 2 |" in page


def test_the_shapes_are_those_of_their_names() -> None:
    def parameters(name: str) -> float:
        s = SHAPES[name]
        attention = s.d_model * s.d_model * 2 * (1 + s.key_heads / s.heads)
        return 2 * s.vocab * s.d_model + s.layers * (3 * s.d_model * s.d_mlp + attention)

    assert round(parameters("8b") / 1e9, 1) == 8.0 and 1.2e9 < parameters("1b") < 1.6e9
    assert len({r.subject for r in requests_of()}) == 104
