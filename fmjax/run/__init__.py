"""Run directories: their config and lock, training in them, and their status."""
