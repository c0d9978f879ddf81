"""Write an edited model where other programs read it."""
