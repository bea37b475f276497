"""Kernels of scaled dot-product attention, one file each, behind `attend`."""
