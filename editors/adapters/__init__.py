"""Low-rank adapters trained on the new answers, by peft."""
