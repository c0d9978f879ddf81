"""From a promotion to the proof that a server answers from it."""
