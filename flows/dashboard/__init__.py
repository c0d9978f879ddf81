"""The dashboard: pages over the published copy of the warehouse, for reading only."""
