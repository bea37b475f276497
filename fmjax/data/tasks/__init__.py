"""seqio tasks and mixtures, and the tokenized documents of their examples."""
