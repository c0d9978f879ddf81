"""Looking inside: where a fact is recalled, and where edits changed the weights."""
