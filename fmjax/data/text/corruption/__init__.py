"""Corruptions, drawn anew whenever a row is read."""
