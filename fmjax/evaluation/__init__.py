"""Evaluations during a run, measurements of a trained run, and comparing runs."""
