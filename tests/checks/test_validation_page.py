"""docs/VALIDATION.md names every rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from checks.door.text_safety import LIKENESS_RULE, RATE_RULES, TEXT_RULES
from checks.judging.conflicts import RULES, VerdictRule
from warehouse.nights.quarantine import UNWAIVABLE

#: Sorted: test processes must collect the same tests, and sets have no order.
NAMES = sorted({rule.name for rule in RULES} | {*TEXT_RULES, LIKENESS_RULE, *RATE_RULES, *UNWAIVABLE})
PAGE = (Path(__file__).parents[2] / "docs" / "VALIDATION.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_the_page_names_the_rule(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("rule", [r for r in RULES if r.name != "suspicious"], ids=lambda rule: rule.name)
def test_the_page_gives_the_rules_verdict(rule: VerdictRule) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{rule.name}`" in line.split("|")[1]]
    assert len(rows) == 1 and rule.verdict in rows[0].split("|")[2]
