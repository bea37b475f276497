"""Curves of a run: the numbers of its metrics.jsonl over steps, as arrays."""

import array
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fmjax.objectives.terms import UNITS


class Curves:
    """The numbers of metrics.jsonl by split and name.

    Of a line all numbers are kept, in 16 bytes each, and of each split the newest line.

    Attributes:
      newest: the last line of each split, by split.
    """

    def __init__(self):
        self.newest: dict[str, Mapping[str, Any]] = {}
        self._columns: dict[tuple[str, str], tuple[array.array, array.array]] = {}

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds the next line, without values that are no number and not null."""
        step, split = line["step"], line["split"]
        self.newest[split] = line
        for name, value in line.items():
            number = as_number(value)
            if name == "step" or (number is None and value is not None):
                continue
            if (split, name) not in self._columns:
                self._columns[split, name] = array.array("q"), array.array("d")
            steps, values = self._columns[split, name]
            steps.append(step)
            values.append(math.nan if number is None else number)

    def names(self, split: str) -> list[str]:
        """Names of the numbers in the lines of a split, sorted."""
        return sorted(name for kind, name in self._columns if kind == split)

    def series(self, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps int64 [N], values float64 [N]); null, for not finite, is NaN."""
        steps, values = self._columns.get((split, name), ((), ()))
        return np.array(steps, np.int64), np.array(values, np.float64)

    @property
    def last_step(self) -> int:
        """Largest step of the newest lines; 0 without lines."""
        return max((line["step"] for line in self.newest.values()), default=0)

    @property
    def unit(self) -> str:
        """What the loss is a mean over, such as "tokens"; "steps" if unknown."""
        logged = self.newest.get("train", {})
        return next((unit for unit in UNITS if unit in logged), "steps")


def as_number(value: Any) -> float | None:
    """The value as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 else None
