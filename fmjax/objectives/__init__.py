"""Training objectives: (variables, batch, rng) → loss terms and metrics."""
