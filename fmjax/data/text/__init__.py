"""From tokenized documents to rows."""
