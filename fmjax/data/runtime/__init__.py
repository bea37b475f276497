"""Data at run time: the cache on disk, batches from it, and streaming."""
