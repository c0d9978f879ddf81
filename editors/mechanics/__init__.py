"""Mathematics and measurement shared by two editors or more: rows, traces, gradients, second moments."""
