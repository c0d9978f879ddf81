"""What may come in: texts, look-alikes, trust, names, and who a record is about."""
