"""What becomes of an update record before it is edited."""
