"""A run directory: who owns it, what it holds, starting and continuing it."""
