"""Tokenizers saved by Hugging Face's libraries."""
