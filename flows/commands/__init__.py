"""The commands of `errata`, one module for each group; `shared.py` holds what all of them print and how they fail."""
