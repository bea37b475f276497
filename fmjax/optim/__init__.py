"""Optimizers and learning-rate schedules, which use the parameters' logical axes."""
