"""Checkpoints: writing, digests, and reading in whole or in part."""
