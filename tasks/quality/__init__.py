"""The quality benchmark: how well each editor edits, its rows, its leaderboard and what it must reach."""
