"""Flows put tasks in order; `cli.py` is the command `errata`."""
