"""Braille plots, read back dot by dot."""

import unicodedata

import numpy as np
import pytest

from fmjax.evaluation.text_plot import plot, short


def dots(lines: list[str]) -> np.ndarray:
    """bool [rows, columns] of the dots, by the names of the patterns in Unicode."""
    # Dots 1 to 3 and 7 are the left column, 4 to 6 and 8 the right one, from the top.
    places = {"1": (0, 0), "2": (1, 0), "3": (2, 0), "7": (3, 0)}
    places |= {"4": (0, 1), "5": (1, 1), "6": (2, 1), "8": (3, 1)}
    start = max(i for i, char in enumerate(lines[0]) if not is_braille(char)) + 1
    grid = np.zeros((4 * len(lines), 2 * (len(lines[0]) - start)), bool)
    for row, line in enumerate(lines):
        for column, char in enumerate(line[start:]):
            name = unicodedata.name(char)
            for dot in name.removeprefix("BRAILLE PATTERN ").removeprefix("DOTS-"):
                if dot in places:
                    down, right = places[dot]
                    grid[4 * row + down, 2 * column + right] = True
    return grid


def is_braille(char: str) -> bool:
    return unicodedata.name(char).startswith("BRAILLE")


@pytest.mark.parametrize("count", [2, 5, 1000])
def test_a_straight_line_is_straight(count):
    steps = np.arange(count)
    grid = dots(plot(steps, 3.0 - 2.0 * steps / (count - 1), width=30, height=5))

    rows, columns = grid.shape
    for column in range(columns):
        (found,) = np.nonzero(grid[:, column])
        assert abs(found.mean() - column / (columns - 1) * (rows - 1)) <= 1.5


def test_the_range_is_labelled_and_lines_are_as_wide_as_asked():
    lines = plot(np.array([10, 20, 30]), np.array([2.5, 1.25, 2.0]), 24, 3)

    assert [len(line) for line in lines] == [24] * 3
    assert lines[0].split()[0] == "2.5"
    assert lines[-1].split()[0] == "1.25"


def test_values_that_are_not_finite_are_left_out():
    steps, values = np.arange(5), np.array([1.0, np.nan, np.inf, 2.0, 3.0])

    assert plot(steps, values, 20, 3) == plot(
        np.array([0, 3, 4]), np.array([1.0, 2.0, 3.0]), 20, 3
    )
    assert "none yet" in plot(np.array([1]), np.array([np.nan]), 20, 3)[0]


@pytest.mark.parametrize("value", [4.0, 0.0, -1e30])
def test_one_value_is_one_level(value):
    for count in (1, 7):
        grid = dots(plot(np.arange(count), np.full(count, value), 20, 3))
        assert grid.any(1).sum() == 1


def test_a_few_high_values_do_not_press_the_rest_into_a_line():
    values = np.r_[1e6, np.linspace(2.0, 1.0, 199)]

    grid = dots(plot(np.arange(200), values, 30, 5))

    assert grid[:, grid.shape[1] // 2].argmax() in range(8, 12)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (4.0222, "4.022"), (3e-4, "3e-04"), (5472.4, "5472"),
        (15_700.0, "15.7k"), (999_999.0, "1000k"), (2.5e6, "2.5M"), (-3e12, "-3T"),
        (0.01234, "0.01234"),
    ],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert short(value) == text
