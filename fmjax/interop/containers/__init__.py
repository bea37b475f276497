"""Containers: files that hold tensors by name, each read one tensor at a time."""
