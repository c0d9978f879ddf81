"""The dashboard: its pages, its door, and what a browser makes of them."""
