"""Editors that add a memory or modules beside the model and leave its weights alone."""
