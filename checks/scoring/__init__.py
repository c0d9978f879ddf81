"""The judging held against labels."""
