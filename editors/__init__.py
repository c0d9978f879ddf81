"""Edit the knowledge of a transformer: the editors, their patches, and the model that carries them."""
