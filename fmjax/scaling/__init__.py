"""Scaling laws, and how hyperparameters transfer between sizes."""
