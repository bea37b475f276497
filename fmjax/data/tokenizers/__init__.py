"""Tokenizers, and the configurables that select or train them."""
