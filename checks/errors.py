"""Errors of the checks: each names the record, rule or metric, what was found and what to do."""


class ChecksError(Exception):
    """Root of every error raised below `checks`."""


class ValidatorBroke(ChecksError):
    """An expectation could not be computed: our fault, not the data's. The night must stop, no verdict is given."""
