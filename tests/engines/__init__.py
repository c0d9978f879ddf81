"""Real engines under test: what each of them answers for the same folder, beside what transformers does."""
