"""seqio tasks and mixtures, and reading their examples."""
