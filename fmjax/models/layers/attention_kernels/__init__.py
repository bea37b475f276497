"""Kernels of scaled dot-product attention, one per file, selected by `attend`."""
