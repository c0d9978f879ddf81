"""Names of editors to classes, imported on use; others join through the entry point group `errata.editors`."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points

from editors.base import Editor
from editors.errors import UnknownEditor

EDITORS = {
    "ft": "editors.regularization.ft:FineTuning",
    "ft_l": "editors.regularization.ft_l:ConstrainedFineTuning",
    "ft_m": "editors.regularization.ft_m:MaskedFineTuning",
    "ft_l2": "editors.regularization.ft_l2:FineTuningL2",
    "ft_kl": "editors.regularization.ft_kl:FineTuningKl",
    "ewc": "editors.regularization.ewc:Ewc",
    "rome": "editors.direct.rome:Rome",
    "r_rome": "editors.direct.r_rome:RRome",
    "emmet": "editors.direct.emmet:Emmet",
    "memit": "editors.direct.memit:Memit",
    "pmet": "editors.direct.pmet:Pmet",
    "alphaedit": "editors.direct.alphaedit:AlphaEdit",
    "grace": "editors.architectural.grace:Grace",
    "ice": "editors.in_context.ice:InContextEditing",
}


def _paths() -> dict[str, str]:
    return EDITORS | {e.name: e.value for e in entry_points(group="errata.editors")}


def names() -> list[str]:
    """All known editors, sorted."""
    return sorted(_paths())


def editor_class(name: str) -> type[Editor]:
    """The class behind a name, or behind a path `package.module:Class`.

    Raises:
        UnknownEditor: no such name; the nearest ones are offered.
    """
    paths = _paths()
    path = paths.get(name, name if ":" in name else "")
    if not path:
        near = difflib.get_close_matches(name, paths, n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}. " if near else ""
        raise UnknownEditor(f"no editor {name!r}; {hint}editors/catalogue.py lists all {len(paths)}")
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownEditor(f"editor {name!r} points at {path!r}, which cannot be imported: {error}") from error
