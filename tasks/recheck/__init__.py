"""Rechecking what the audit trail vouches for: entries, objects of the store, answers and weights of production."""
