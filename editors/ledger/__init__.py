"""Errata's own editors, whose state is a function of the set of active edits, and the mechanics that only they use."""
