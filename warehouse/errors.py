"""Errors of the warehouse: each names the record, file or digest, what was found and what to do."""


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


class Conflict(WarehouseError):
    """A create-only object exists with other content, or a channel was moved by somebody else first."""


class LineageMoved(Conflict):
    """A channel does not serve the checkpoint that the work was begun on: somebody else moved it first."""
