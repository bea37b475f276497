"""Which cases of a parametrized test run by default, and which with --slow alone."""

from collections.abc import Iterable

import pytest


def one_of_each_family(names: Iterable[str]) -> list:
    """The names; those of variants ("bert, bare" beside "bert") are marked slow."""
    return [slow(name) if "," in name else name for name in names]


def slow(*values):
    """A case that runs with --slow alone."""
    return pytest.param(*values, marks=pytest.mark.slow)
