"""Nets that editors train beforehand: what they are made of, and how they are trained on training edits."""
