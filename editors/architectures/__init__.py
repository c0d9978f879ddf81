"""What each architecture looks like: where its modules are, what its blocks do otherwise, and how they are made to fit."""
