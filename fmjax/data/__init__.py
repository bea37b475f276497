"""seqio defines the tasks, an ArrayRecord cache and Grain serve them as batches."""
