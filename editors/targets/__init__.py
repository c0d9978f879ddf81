"""What an edited layer is to write: keys and values at the lookup token, and the optimisation of values."""
