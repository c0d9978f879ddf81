"""Names of editors to classes, imported on use; others join through the entry point group `errata.editors`."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points

from editors.base import Editor
from editors.errors import RefusedEditor, UnknownEditor

EDITORS = {
    "ft": "editors.regularization.ft:FineTuning",
    "ft_l": "editors.regularization.ft_l:ConstrainedFineTuning",
    "ft_m": "editors.regularization.ft_m:MaskedFineTuning",
    "ft_l2": "editors.regularization.ft_l2:FineTuningL2",
    "ft_kl": "editors.regularization.ft_kl:FineTuningKl",
    "ewc": "editors.regularization.ewc:Ewc",
    "enn": "editors.meta_learning.enn:Enn",
    "knowledge_editor": "editors.meta_learning.knowledge_editor:KnowledgeEditor",
    "mend": "editors.meta_learning.mend:Mend",
    "malmen": "editors.meta_learning.malmen:Malmen",
    "rome": "editors.direct.rome:Rome",
    "r_rome": "editors.direct.r_rome:RRome",
    "emmet": "editors.direct.emmet:Emmet",
    "memit": "editors.direct.memit:Memit",
    "pmet": "editors.direct.pmet:Pmet",
    "alphaedit": "editors.direct.alphaedit:AlphaEdit",
    "ledger": "editors.ledger.ledger:Ledger",
    "ledger_solve": "editors.ledger.ledger_solve:LedgerSolve",
    "ultraedit": "editors.direct.ultraedit:UltraEdit",
    "minimal_patch": "editors.direct.minimal_patch:MinimalPatch",
    "rect": "editors.direct.rect:Rect",
    "prune": "editors.direct.prune:Prune",
    "nas": "editors.direct.nas:Nas",
    "knowledge_neurons": "editors.direct.knowledge_neurons:KnowledgeNeurons",
    "grace": "editors.architectural.grace:Grace",
    "serac": "editors.architectural.serac:Serac",
    "cnp": "editors.architectural.cnp:Cnp",
    "t_patcher": "editors.architectural.t_patcher:TPatcher",
    "calinet": "editors.architectural.calinet:CaliNet",
    "wise": "editors.architectural.wise:Wise",
    "lora": "editors.adapters.lora:Lora",
    "adalora": "editors.adapters.adalora:AdaLora",
    "ice": "editors.in_context.ice:InContextEditing",
    "ike": "editors.in_context.ike:Ike",
}


def _paths() -> dict[str, str]:
    """Names to paths.

    Raises:
        RefusedEditor: an entry point bears a name that is taken. Which of two editors ran would be chance.
    """
    paths = dict(EDITORS)
    for point in entry_points(group="errata.editors"):
        if point.name in paths:
            package = point.dist.name if point.dist is not None else "unknown"
            raise RefusedEditor(
                f"entry point {point.name!r} of package {package} ({point.value}) bears the name of {paths[point.name]}; "
                "rename it there, or uninstall that package"
            )
        paths[point.name] = point.value
    return paths


def names() -> list[str]:
    """All known editors, sorted; raises as `editor_class` for a name that is taken twice."""
    return sorted(_paths())


def editor_class(name: str) -> type[Editor]:
    """The class behind a name, or behind a path `package.module:Class`.

    Raises:
        UnknownEditor: no such name; the nearest ones are offered.
        RefusedEditor: what the name points at is no editor, or an entry point bears a name that is taken.
    """
    paths = _paths()
    path = paths.get(name, name if ":" in name else "")
    if not path:
        near = difflib.get_close_matches(name, paths, n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}. " if near else ""
        raise UnknownEditor(f"no editor {name!r}; {hint}editors/catalogue.py lists all {len(paths)}")
    module, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UnknownEditor(f"editor {name!r} points at {path!r}, which cannot be imported: {error}") from error
    if not isinstance(found, type) or not issubclass(found, Editor):
        raise RefusedEditor(f"editor {name!r} points at {path!r}, which is no subclass of editors.base.Editor: {found!r}")
    return found


def can_retract(name: str) -> bool:
    """Whether edits by an editor of this name can be retracted; not where it is no longer installed."""
    try:
        return editor_class(name).card.retracts
    except (RefusedEditor, UnknownEditor):
        return False
