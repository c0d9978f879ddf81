"""The speed benchmark: what an edit, an evaluation and a night cost beside their obvious forms."""
