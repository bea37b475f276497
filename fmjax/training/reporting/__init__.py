"""Reporting of a run: progress, metrics, events."""
