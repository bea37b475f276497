"""Augmentations, one a file."""
