"""What a night brought, and what became of each record: verdicts, conflicts, what waits, how far it came."""
