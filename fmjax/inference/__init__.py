"""Using a trained run: loading and generation."""
