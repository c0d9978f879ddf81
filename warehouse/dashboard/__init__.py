"""What the dashboard reads: a published copy of the warehouse, and the questions of its pages as named queries."""
