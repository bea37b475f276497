"""Corruptions of text, drawn anew each time a row is read."""
