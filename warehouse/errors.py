"""Errors of the warehouse: each names the record, file or digest, what was found and what to do.

And `UsageError`, which lies here because every layer may raise it.
"""

from __future__ import annotations

from pydantic import ValidationError


class UsageError(ValueError):
    """A mistake of whoever called: an argument, a setting, or a file that they wrote. The command line shows it as one line.

    It is a ValueError, as a wrong argument is for Python; a ValueError that is no UsageError is a bug of ours.
    """


def problems(error: ValidationError, limit: int = 3) -> str:
    """The fields that a record refused, each with the reason, on one line; what was found there may be a secret."""
    found = [f"{'.'.join(map(str, e['loc'])) or 'the whole'}: {e['msg']}" for e in error.errors(include_url=False)]
    more = f" (and {len(found) - limit} more)" if len(found) > limit else ""
    return "; ".join(found[:limit]) + more


class WarehouseError(Exception):
    """Root of every error raised below `warehouse`."""


class SourceError(WarehouseError):
    """A source document could not be read: names the file and line, and what was expected there."""


class MigrationError(WarehouseError):
    """The database is newer than this code, or a migration file changed after it was applied."""


class IntegrityError(WarehouseError):
    """Stored content does not match its digest, or a reference points at nothing."""


class NotFound(WarehouseError):
    """No object, checkpoint or row of that name."""


class RefusedName(WarehouseError, ValueError):
    """A name that nothing in a store may have: no plain relative path, or one of a pickle or code."""


class Conflict(WarehouseError):
    """A create-only object exists with other content, or a channel was moved by somebody else first."""


class LineageMoved(Conflict):
    """A channel does not serve the checkpoint that the work was begun on: somebody else moved it first."""
