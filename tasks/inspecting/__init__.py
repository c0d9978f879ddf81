"""Looking into a model: where facts are recalled, where edits lie, whether slots could be told apart."""
