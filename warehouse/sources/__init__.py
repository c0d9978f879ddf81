"""Where fact updates come from. Start in `base.py`; to add a source, write a class with its shape and a line below."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from warehouse.errors import SourceError
from warehouse.sources.base import Source

SOURCES = {
    "recorded": "warehouse.sources.recorded:RecordedSource",
    "knowedit": "warehouse.sources.knowedit:KnowEditSource",
    "benchmark": "warehouse.sources.benchmark:BenchmarkSource",
    "requests": "warehouse.sources.requests:RequestsSource",
    "wikidata": "warehouse.ingest.live_ingest:WikidataSource",
}
#: Sources that take a task.
WITH_TASK = ("knowedit", "benchmark")


def open_source(name: str, path: Path | None = None, task: str = "") -> Source:
    """The source of that name over a file or folder; `recorded` without a path reads the embedded nights.

    Args:
        task: the format or task of files whose content (`benchmark`) or name (`knowedit`) does not tell it.

    Raises:
        SourceError: no source of that name, it needs a path and none was given, or it knows no such task.
    """
    if name not in SOURCES:
        raise SourceError(f"no source {name!r}; there are: {', '.join(SOURCES)}")
    if path is None and name != "recorded":
        raise SourceError(f"source {name!r} reads a file or folder; give its path")
    module, class_name = SOURCES[name].split(":")
    source_class = getattr(import_module(module), class_name)
    if task:
        if name not in WITH_TASK:
            raise SourceError(f"source {name!r} has no tasks, but source.task is {task!r}; only {', '.join(WITH_TASK)} have")
        return source_class(path, task)
    return source_class() if path is None else source_class(path)
