"""Text: layouts that make rows from tokenized documents, corruptions, data of seqio."""
