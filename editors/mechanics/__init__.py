"""Mathematics and measurement shared by two editors or more: traces, keys, values, second moments, solvers."""
