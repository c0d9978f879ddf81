"""Whether the warehouse holds together, and its tables as plain files."""
