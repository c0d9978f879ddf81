"""The survey's Table 3, and where an editor's card differs from it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from editors.base import EditorCard


@dataclass(frozen=True)
class SurveyRow:
    """One row of Table 3 (Mazzia et al., section 4), column by column.

    Attributes:
        training: an auxiliary model is trained.
        architecture: the edited model's architecture is preserved.
        only_xy: no more than the pair (x_e, y_e) is needed.
        sns, bns, sse, bse: single and batch, non-successive and successive.
        scales: to models of more than 10B parameters.
    """

    category: str
    training: bool
    architecture: bool
    only_xy: bool
    sns: bool
    bns: bool
    sse: bool
    bse: bool
    scales: bool


def _row(category: str, marks: str) -> SurveyRow:
    """Marks of the eight columns in the table's order, `+` and `-`."""
    return SurveyRow(category, *(mark == "+" for mark in marks))


#: Our names to the survey's rows, as printed.
TABLE_3 = {
    "ft_l2": _row("regularization", "-+-++++-"),
    "ft_kl": _row("regularization", "-+-++++-"),
    "ewc": _row("regularization", "-+-++++-"),
    "cnp": _row("architectural", "+-++++++"),
    "enn": _row("meta_learning", "+-++-+--"),
    "knowledge_editor": _row("meta_learning", "++++---+"),
    "mend": _row("meta_learning", "+++++--+"),
    "malmen": _row("meta_learning", "++++++-+"),
    "rome": _row("direct", "-++----+"),
    "memit": _row("direct", "-+-+++++"),
    "pmet": _row("direct", "-+-+++++"),
    "serac": _row("architectural", "+-++++++"),
    "calinet": _row("architectural", "+++++--+"),
    "t_patcher": _row("architectural", "---+++-+"),
    "grace": _row("architectural", "+-++++++"),
}


def row_of(card: EditorCard) -> SurveyRow:
    """Table 3's columns for any editor, read from its card."""
    several = card.max_batch != 1
    return SurveyRow(
        card.family,
        card.trains,
        card.preserves_architecture,
        card.only_xy,
        "single" in card.modes,
        several and "batch" in card.modes,
        "sequential" in card.modes,
        several and "sequential-batch" in card.modes,
        card.scales,
    )


def differences(card: EditorCard) -> list[str]:
    """Columns in which a card differs from the survey's row; none for editors that the survey does not list."""
    theirs = TABLE_3.get(card.name)
    if theirs is None:
        return []
    ours = row_of(card)
    return [f.name for f in fields(SurveyRow) if getattr(ours, f.name) != getattr(theirs, f.name)]
