"""Closed forms: least squares over keys, null spaces, quadratic programs, spreading an update over layers."""
