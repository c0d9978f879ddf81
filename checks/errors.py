"""Errors of the checks: each names the record, rule or metric, what was found and what to do."""


class ChecksError(Exception):
    """Root of every error raised below `checks`."""


class ValidatorBroke(ChecksError):
    """An expectation could not be computed: our fault, not the data's. The night must stop, no verdict is given."""


class EvaluationError(ChecksError):
    """The evaluation cannot go on: names the probe or model, what was found and what to do."""


class PolicyError(ChecksError):
    """A policy that cannot be read or could stop nothing: names the file and rule, and what to do."""
