"""Taking edits or checkpoints out of what is served."""
