"""Editors that state facts in the context and change nothing in the model."""
