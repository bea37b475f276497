"""Scaling laws: fitted to runs, and asked for sizes, tokens and time."""
