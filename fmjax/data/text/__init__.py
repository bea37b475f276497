"""Text: layouts that make rows from tokenized documents, corruptions, and streaming."""
