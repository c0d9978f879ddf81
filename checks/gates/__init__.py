"""Whether an edited model may be promoted."""
