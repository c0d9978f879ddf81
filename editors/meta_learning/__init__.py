"""Editors that learn how to edit: hypernetworks, and a base model trained to be edited (the survey's meta-learning family)."""
