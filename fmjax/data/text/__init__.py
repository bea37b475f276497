"""Text: layouts that make rows from tokenized documents, and corruptions."""
