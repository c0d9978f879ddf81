"""The suite over what is about to reach an editor: one row per accepted record, its shape and its conflict columns.

The verdict rules have spoken before; on a night that they judged rightly every expectation holds. A row that fails
here is held back (`checks.judging.verdicts`), and an expectation that could not be computed stops the night.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import pandas as pd

from checks.door.labels import MAX_LABEL_CHARS, MAX_TEXT_CHARS
from checks.errors import ValidatorBroke

#: Columns of the frame. Flags are 0 or 1; `num_targets` counts targets of one subject and relation in the frame.
SUITE_COLUMNS = (
    "record_id", "subject_key", "subject", "relation", "target_key", "target", "kind", "is_request", "relation_known",
    "self_reference", "no_change", "num_targets", "num_verdicts", "in_store", "stale", "type_conflict", "contradicts",
    "contradicts_store", "inverse_conflict", "composite_conflict", "repeats",
)  # fmt: skip
_MUST_BE_ZERO = (
    "self_reference", "no_change", "in_store", "stale", "type_conflict", "contradicts", "contradicts_store",
    "inverse_conflict", "composite_conflict", "repeats",
)  # fmt: skip
# The direction marks stand as themselves: pandas hands the pattern to RE2, which knows no \\u escapes.
_CONTROLS = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f" + "\u202a-\u202e\u2066-\u2069]"


def _expectations() -> list[Any]:
    # By name, as `Any`: GX exports its classes in a way that a type checker cannot follow.
    gxe: Any = import_module("great_expectations.expectations")
    column: Any = import_module("great_expectations.expectations.row_conditions").Column

    changes = {"row_condition": column("is_request") == 0}
    with_target = {"row_condition": column("kind") != "erase"}
    never_null = ("record_id", "subject_key", "subject", "relation", "kind")
    return [
        # Null passes every other column check.
        *(gxe.ExpectColumnValuesToNotBeNull(column=c) for c in never_null),
        *(gxe.ExpectColumnValuesToNotBeNull(column=c, **with_target) for c in ("target", "target_key")),
        gxe.ExpectColumnValuesToBeUnique(column="record_id"),
        gxe.ExpectColumnValueLengthsToBeBetween(column="subject", min_value=1, max_value=MAX_TEXT_CHARS),
        gxe.ExpectColumnValueLengthsToBeBetween(column="target", min_value=1, max_value=MAX_TEXT_CHARS, **with_target),
        gxe.ExpectColumnValueLengthsToBeBetween(column="subject", min_value=1, max_value=MAX_LABEL_CHARS, **changes),
        gxe.ExpectColumnValuesToNotMatchRegex(column="subject", regex=_CONTROLS),
        gxe.ExpectColumnValuesToNotMatchRegex(column="target", regex=_CONTROLS, **with_target),
        gxe.ExpectColumnValuesToBeInSet(column="relation_known", value_set=[1], **changes),
        # The survey's eq. 3: no two requests with one subject and relation and different targets.
        gxe.ExpectColumnValuesToBeInSet(column="num_targets", value_set=[1]),
        gxe.ExpectColumnValuesToBeInSet(column="num_verdicts", value_set=[1]),
        *(gxe.ExpectColumnValuesToBeInSet(column=c, value_set=[0]) for c in _MUST_BE_ZERO),
    ]


def run_request_suite(frame: pd.DataFrame) -> dict[str, Any]:
    """Check the frame of accepted records (`SUITE_COLUMNS`).

    Returns:
        JSON-able: `success`, `rows`, and `results`, each with `expectation`, `column`, `success` and the
        `failing` record ids in full.

    Raises:
        ValidatorBroke: an expectation could not be computed at all, which says nothing about the data.
    """
    missing = set(SUITE_COLUMNS) - set(frame.columns)
    if missing:
        raise ValidatorBroke(f"request suite: the frame lacks columns {sorted(missing)}; nothing was checked")
    if frame.empty:
        return {"success": True, "rows": 0, "results": []}
    try:
        results = _validated(frame)
    except ValidatorBroke:
        raise
    except Exception as error:  # whatever the library raises is no finding about a record
        raise ValidatorBroke(
            f"request suite: it could not be run on {len(frame)} rows: {type(error).__name__}: {error}; the night has no "
            "verdicts, repair the suite or the frame and run it again"
        ) from error
    return {"success": all(r["success"] for r in results), "rows": len(frame), "results": results}


def _validated(frame: pd.DataFrame) -> list[dict[str, Any]]:
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    gx: Any = import_module("great_expectations")
    context = gx.get_context(mode="ephemeral")
    # Progress bars and usage events belong to people at a terminal, not to a nightly run.
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("requests").add_dataframe_asset("night")
    batch = asset.add_batch_definition_whole_dataframe("all")
    suite = gx.ExpectationSuite(name="requests", expectations=_expectations())
    found = batch.get_batch({"dataframe": frame}).validate(
        suite, result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["record_id"]}
    )
    return [_result(item) for item in found.to_json_dict()["results"]]


def _result(item: dict[str, Any]) -> dict[str, Any]:
    config = item["expectation_config"]
    name, column = config["type"], config["kwargs"].get("column", "")
    broken = item.get("exception_info") or {}
    # One failure comes flat, failures of several metrics come keyed by metric.
    for info in [broken] if "raised_exception" in broken else list(broken.values()):
        if info.get("raised_exception"):
            raise ValidatorBroke(
                f"request suite: {name} on column '{column}' could not be computed: {info.get('exception_message')}; "
                "the night has no verdicts, repair the suite or the frame and run it again"
            )
    rows = (item.get("result") or {}).get("unexpected_index_list") or []
    failing = sorted({str(row["record_id"]) for row in rows})
    return {"expectation": name, "column": column, "success": bool(item["success"]), "failing": failing}
