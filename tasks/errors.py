"""Errors of the tasks: each names the lineage, night or file, what was found and what to do."""


class TasksError(Exception):
    """Root of every error raised below `tasks`."""


class LineageBusy(TasksError):
    """Another run of the same lineage is going on."""


class NotEnoughFacts(TasksError):
    """The world has fewer facts of the kind asked for; names how many there are."""


class NotFetched(TasksError):
    """A model could not be brought from the package index, or what came is not what is recorded."""
