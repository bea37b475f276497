"""Data at run time: the cache on disk, and batches from it."""
