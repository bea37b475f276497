"""seqio tasks and mixtures, and examples out of them."""
