"""Which cases of a parametrized test run by default, and which with --slow alone."""

from collections.abc import Collection, Iterable

import pytest


def one_of_each_family(names: Iterable[str], alike: Collection[str] = ()) -> list:
    """The names; those of variants ("bert, bare" beside "bert") are marked slow.

    Args:
      names: of families and variants.
      alike: families without a part that no other has, also marked slow.
    """
    return [slow(name) if "," in name or name in alike else name for name in names]


def slow(*values):
    """A case that runs with --slow alone."""
    return pytest.param(*values, marks=pytest.mark.slow)
