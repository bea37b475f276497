"""Fault tolerance: bad steps, hangs, interruptions, defective devices."""
