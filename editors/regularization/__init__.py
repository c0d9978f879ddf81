"""Fine-tuning with and without constraints: gradient steps on chosen weights."""
