"""A published copy of the warehouse: read as long as anybody likes, while nights write the warehouse itself."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from warehouse.database.connection import Warehouse
from warehouse.errors import NotFound, WarehouseError
from warehouse.whole_files import SUFFIX, is_left_over, whole_file


def publish(source: Path, target: Path, *, wait_s: float = 30.0) -> None:
    """Copy the warehouse as it stands; `target` is replaced at once or not at all, so a kill leaves the copy of before.

    Args:
        wait_s: how long to wait, in seconds, while another process has the warehouse open.

    Raises:
        NotFound: there is no warehouse.
        WarehouseBusy: it was open elsewhere for longer than the wait.
        WarehouseError: it could not be copied.
    """
    if not source.exists():
        raise NotFound(f"no warehouse at {source}; the first nightly run creates it")
    with Warehouse.open(source, wait_s=wait_s) as wh:
        wh.checkpoint()
        try:
            for path in target.parent.glob(f"{target.name}.*{SUFFIX}*"):
                if is_left_over(path):
                    path.unlink(missing_ok=True)
            with whole_file(target) as fresh:
                # By a process of its own: to close the file in this one would drop DuckDB's lock on it (fcntl).
                subprocess.run(["cp", str(source), str(fresh)], check=True, capture_output=True, text=True)
                Warehouse.open(fresh, read_only=True).close()
        except (OSError, subprocess.CalledProcessError) as error:
            said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise WarehouseError(f"{source} could not be copied to {target}: {said}; is there room on the disk?") from error


class PublishedCopy:
    """Reads a published copy, one reader at a time; takes up a newer one by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.Lock()
        self._identity: tuple[int, int, int] | None = None
        self._warehouse: Warehouse | None = None

    @contextmanager
    def reading(self) -> Iterator[Warehouse]:
        """The copy, opened read-only and kept open until a newer one has its name.

        Raises:
            NotFound: nothing has been published.
            MigrationError: it was published by an earlier version of this code.
        """
        with self._mutex:
            found = self._identify()
            if self._warehouse is None or found != self._identity:
                self._close()
                # DuckDB knows a file by its path, so the one before is closed first.
                self._warehouse, self._identity = Warehouse.open(self.path, read_only=True), found
            yield self._warehouse

    def published_at(self) -> datetime:
        """When the copy was made. Raises as `reading`."""
        return datetime.fromtimestamp(self._identify()[0] / 1e9, UTC)

    def close(self) -> None:
        """Close the file; a later `reading` opens it again."""
        with self._mutex:
            self._close()

    def _identify(self) -> tuple[int, int, int]:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            raise NotFound(f"nothing is published at {self.path}; run `errata warehouse publish`") from None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def _close(self) -> None:
        if self._warehouse is not None:
            self._warehouse.close()
        self._warehouse, self._identity = None, None
