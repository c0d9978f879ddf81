"""General ability: a small set of items with exact answers that rest on no fact of the world, kept in this repository."""
