"""Checkpoints: written, digested, read and read back in part."""
