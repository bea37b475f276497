"""Streaming: batches read from files in training, without a cache."""
