"""What comes in, into tables: the live stream's events, whole dumps, and what documents say beside facts."""
