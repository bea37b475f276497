"""Sweeps: many runs of one config over the points of a space, and their results."""
