"""Vision models, one family a file."""
