"""Which cases of a parametrized test run by default, and which with --slow alone."""

import pytest


def slow(*values):
    """A case that runs with --slow alone."""
    return pytest.param(*values, marks=pytest.mark.slow)
