"""Tokenizers that Hugging Face's libraries saved."""
