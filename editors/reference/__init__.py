"""Build and measure the embedded reference model: tokenizer, subject mask, training, exact match."""
