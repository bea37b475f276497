"""Augmentations of texts, one in each file."""
