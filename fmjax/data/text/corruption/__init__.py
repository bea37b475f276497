"""Corruptions: what a row is turned into whenever it is read."""
