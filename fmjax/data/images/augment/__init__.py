"""Augmentations of images, one in each file."""
