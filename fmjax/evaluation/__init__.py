"""Measuring a trained run, and comparing runs."""
