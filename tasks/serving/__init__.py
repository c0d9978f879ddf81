"""Models that tasks work with: loaded, prepared for, found by name, brought to a checkpoint, exported, signed."""
