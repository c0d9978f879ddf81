"""A file on disk for what a dump says in another order than it is needed: labels, aliases, the older documents."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from warehouse.wikidata.entities import EntityDocument

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -16384;
CREATE TABLE labels (id TEXT PRIMARY KEY, label TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE aliases (id TEXT, alias TEXT, PRIMARY KEY (id, alias)) WITHOUT ROWID;
CREATE TABLE documents (id TEXT PRIMARY KEY, revision INTEGER, body BLOB, seen INTEGER NOT NULL);
CREATE TABLE pending (seq INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE asides (seq INTEGER PRIMARY KEY, body TEXT NOT NULL);
"""
#: SQLite takes some hundred parameters in one statement everywhere.
_IDS = 500


class Scratch:
    """Kept beside the work and thrown away with it: no journal, 16 MB of cache. A context manager."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(_SCHEMA)
        self._db.execute("BEGIN")

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._db.close()

    # ------------------------------------------------------------ names

    def name(self, entity: EntityDocument) -> None:
        """Keep label and aliases; a later document of the entity takes the place of an earlier one."""
        if entity.label:
            self._db.execute("INSERT OR REPLACE INTO labels VALUES (?, ?)", [entity.id, entity.label])
        self._db.executemany("INSERT OR IGNORE INTO aliases VALUES (?, ?)", [(entity.id, alias) for alias in entity.aliases])

    def labels(self, ids: Iterable[str]) -> dict[str, str]:
        return dict(self._of("SELECT id, label FROM labels WHERE id IN", ids))

    def aliases(self, ids: Iterable[str]) -> list[tuple[str, str]]:
        return list(self._of("SELECT id, alias FROM aliases WHERE id IN", ids))

    def _of(self, sql: str, ids: Iterable[str]) -> Iterator[tuple[str, str]]:
        wanted = sorted(set(ids))
        for start in range(0, len(wanted), _IDS):
            some = wanted[start : start + _IDS]
            yield from self._db.execute(f"{sql} ({', '.join('?' * len(some))})", some)

    # ------------------------------------------------------------ documents

    def keep(self, entity: EntityDocument, body: bytes) -> None:
        """Keep a document to compare with."""
        row = [entity.id, entity.revision, zlib.compress(body, 1)]
        self._db.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, 0)", row)

    def meet(self, entity_id: str) -> tuple[bool, int | None, bytes | None]:
        """(whether this id was met before, revision and document that were kept for it, None where none was)."""
        row = self._db.execute("SELECT seen, revision, body FROM documents WHERE id = ?", [entity_id]).fetchone()
        if row is None:
            self._db.execute("INSERT INTO documents VALUES (?, NULL, NULL, 1)", [entity_id])
            return False, None, None
        self._db.execute("UPDATE documents SET seen = 1 WHERE id = ?", [entity_id])
        return bool(row[0]), row[1], None if row[2] is None else zlib.decompress(row[2])

    def unmet(self) -> int:
        """How many documents were kept and never met."""
        return self._db.execute("SELECT count(*) FROM documents WHERE seen = 0").fetchone()[0]

    # ------------------------------------------------------------ what waits for labels

    def wait(self, body: str) -> None:
        self._db.execute("INSERT INTO pending (body) VALUES (?)", [body])

    def waiting(self, size: int) -> Iterator[list[str]]:
        """All that waits, in order, `size` at a time."""
        yield from self._pieces("pending", size)

    def put_aside(self, body: str) -> None:
        """Keep what could not be read until the whole file is."""
        self._db.execute("INSERT INTO asides (body) VALUES (?)", [body])

    def asides(self, size: int) -> Iterator[list[str]]:
        """All that was put aside, in order, `size` at a time."""
        yield from self._pieces("asides", size)

    def _pieces(self, table: str, size: int) -> Iterator[list[str]]:
        last = 0
        while rows := self._db.execute(
            f"SELECT seq, body FROM {table} WHERE seq > ? ORDER BY seq LIMIT ?", [last, size]
        ).fetchall():
            last = rows[-1][0]
            yield [body for _, body in rows]
