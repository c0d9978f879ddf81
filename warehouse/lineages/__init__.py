"""A lineage: its edits, its chain of checkpoints, what was measured and decided, its audit trail."""
