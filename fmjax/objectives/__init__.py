"""What training minimizes: (variables, batch, rng) → terms and metrics."""
