"""Scoring the entity parser: exact where the records are right, and wrong where they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from checks.scoring.entities import EntityScoringError, score_entities
from flows.cli import app
from tests.warehouse.documents import document, item, snak, statement, when


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One entity at two revisions (a value changed, a statement came, an identifier came) and its records."""
    revisions = tmp_path / "revisions" / "Q17"
    revisions.mkdir(parents=True)
    identifier = snak("P214", {"type": "string", "value": "12"}, datatype="external-id")
    old = document("Q17", statement("Q17$a", "P36", item("Q34600")), label="Japan")
    new = document("Q17", statement("Q17$a", "P36", item("Q1490")), label="Japan")
    ruler = statement("q17$B", "P35", item("Q1"), qualifiers={"P580": when("+2019-05-01T00:00:00Z")})
    new["claims"] |= {"P35": [ruler], "P214": [statement("Q17$c", "P214", None, mainsnak=identifier)]}
    for name, raw in (("1", old), ("2", new)):
        (revisions / f"{name}.json").write_text(json.dumps(raw))
    (tmp_path / "lexeme.json").write_text('{"id": "L5", "type": "lexeme"}')
    write(tmp_path, [
        record("Q17$a", "value_changed", old=side("Q34600"), new=side("Q1490")),
        record("Q17$b", "statement_added",
               new=side("Q1") | {"qualifiers": {"P580": [{"type": "time", "time": "+2019-05-01T00:00:00Z", "precision": 11,
                                                         "calendar": "Q1985727"}]}}),
    ])  # fmt: skip
    return tmp_path


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "real_diffs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def record(statement_id: str, change: str, **sides: Any) -> dict[str, Any]:
    return {
        "diff_id": "d",
        "entity": "Q17",
        "from_rev": "1",
        "to_rev": "2",
        "statement_id": statement_id,
        "change": change,
    } | sides


def side(qid: str) -> dict[str, Any]:
    return {"value": {"type": "item", "id": qid}, "rank": "normal", "n_references": 0}


def test_a_right_diff_scores_one_and_identifiers_do_not_count(folder: Path) -> None:
    diffs = score_entities(folder)["diffs"]
    assert (diffs["precision"], diffs["recall"], diffs["n"], diffs["same_content"]) == (1.0, 1.0, 2, 1.0)


def test_the_first_line_is_about_values_additions_and_removals_alone(folder: Path) -> None:
    rows = [record("Q17$a", "value_changed+rank_changed"), record("Q17$b", "statement_added")]
    write(folder, rows)
    scores = score_entities(folder)
    assert (scores["errors"], scores["precision"], scores["recall"], scores["diffs"]["recall"]) == (0, 1.0, 1.0, 2 / 3)


def test_every_document_is_read_or_set_aside(folder: Path) -> None:
    documents = score_entities(folder)["documents"]
    assert (documents["n"], documents["entities"], documents["set_aside"], documents["errors"]) == (
        3, 2, {"unsupported_entity": 1}, [],
    )  # fmt: skip


def test_a_missing_and_a_spurious_change_cost_recall_and_precision(folder: Path) -> None:
    write(folder, [record("Q17$a", "value_changed"), record("Q17$z", "statement_removed")])
    diffs = score_entities(folder)["diffs"]
    assert (diffs["precision"], diffs["recall"]) == (0.5, 0.5)
    assert {(row["statement"], row["problem"]) for row in diffs["wrong"]} == {("q17$b", "spurious"), ("q17$z", "missing")}


def test_another_recorded_value_shows_in_the_content(folder: Path) -> None:
    write(folder, [record("Q17$a", "value_changed", old=side("Q34600"), new=side("Q2")), record("Q17$b", "statement_added")])
    assert score_entities(folder)["diffs"]["same_content"] == 0.5


def test_start_and_end_are_held_against_the_record(folder: Path) -> None:
    rows = [{"statement_id": "Q17$b", "rank": "normal", "start": ["+2019-05-01T00:00:00Z"], "end": end} for end in ([], ["x"])]
    (folder / "temporal_statements.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert score_entities(folder)["temporal"]["right"] == 1


def test_a_revision_that_is_not_there_is_named(folder: Path) -> None:
    (folder / "revisions" / "Q17" / "2.json").unlink()
    with pytest.raises(EntityScoringError, match=r"2\.json: no such document"):
        score_entities(folder)


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EntityScoringError, match="needs entity documents"):
        score_entities(tmp_path)


def test_the_command_prints_the_scores_as_json(folder: Path) -> None:
    result = CliRunner().invoke(app, ["entities", "score", str(folder), "--json"])
    assert result.exit_code == 0 and json.loads(result.output)["diffs"]["recall"] == 1.0
