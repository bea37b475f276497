"""Formats of token streams: flat ones, and Megatron's with an index."""
