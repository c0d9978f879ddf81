"""Numbers of editors that nobody sets by hand: a short search on development facts of the model at hand."""
