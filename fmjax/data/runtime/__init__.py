"""The cache on disk, and batches out of it."""
