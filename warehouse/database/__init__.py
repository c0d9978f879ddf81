"""The DuckDB file: its connection, its schema and migrations, frames into stored types."""
