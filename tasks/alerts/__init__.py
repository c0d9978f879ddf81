"""Alerts: what people and their systems are told of a night that does not serve, signed where it goes to a program."""
