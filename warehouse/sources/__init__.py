"""Where fact updates come from. Start in `base.py`; to add a source, write a class with its shape and a line below."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from warehouse.errors import SourceError
from warehouse.sources.base import Source

SOURCES = {
    "recorded": "warehouse.sources.recorded:RecordedSource",
    "knowedit": "warehouse.sources.knowedit:KnowEditSource",
    "requests": "warehouse.sources.requests:RequestsSource",
    "wikidata": "warehouse.live_ingest:WikidataSource",
}


def open_source(name: str, path: Path | None = None) -> Source:
    """The source of that name over a file or folder; `recorded` without a path reads the embedded nights.

    Raises:
        SourceError: no source of that name, or it needs a path and none was given.
    """
    if name not in SOURCES:
        raise SourceError(f"no source {name!r}; there are: {', '.join(SOURCES)}")
    if path is None and name != "recorded":
        raise SourceError(f"source {name!r} reads a file or folder; give its path")
    module, class_name = SOURCES[name].split(":")
    source_class = getattr(import_module(module), class_name)
    return source_class() if path is None else source_class(path)
