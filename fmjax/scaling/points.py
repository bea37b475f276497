"""Results of runs that laws are fitted to, read from CSV files."""

import csv
import dataclasses
import os
from collections.abc import Mapping

import numpy as np

from fmjax.errors import UserError, suggest
from fmjax.scaling.laws import FLOPS_PER_PARAMETER_AND_TOKEN

QUANTITIES = ("parameters", "tokens", "flops", "loss", "unique_tokens", "run")


@dataclasses.dataclass(frozen=True)
class Points:
    """Runs, or moments of runs, one an element.

    Attributes:
      parameters: N, float64 [n].
      tokens: D, repetitions included, float64 [n].
      loss: nats a token, float64 [n].
      unique_tokens: U, float64 [n]; infinite where tokens are not repeated. None if
        the file has no such column.
      run: name of the run, [n]; None likewise.
    """

    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    unique_tokens: np.ndarray | None = None
    run: np.ndarray | None = None

    @property
    def flops(self) -> np.ndarray:
        """C = 6 N D, float64 [n]."""
        return FLOPS_PER_PARAMETER_AND_TOKEN * self.parameters * self.tokens

    def __len__(self):
        return len(self.loss)

    def take(self, index) -> "Points":
        """Some of the points, by an index or mask of NumPy."""
        fields = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Points(*(None if values is None else values[index] for values in fields))


def read_points(
    path: str | os.PathLike,
    columns: Mapping[str, str] | None = None,
    without_highest: int = 0,
) -> Points:
    """Reads runs from a CSV file.

    Args:
      path: a file with a line of column names. Of N, D and C two are enough, as
        C = 6 N D; if all are there, C is not read.
      columns: quantity of `QUANTITIES` → name of its column, where that is another.
        Columns that are named must be there.
      without_highest: how many points of the highest loss are left out.

    Raises:
      UserError: the file or a column is missing, or a value is not a positive number.
    """
    given = dict(columns or {})
    names, rows = _read(path)
    for quantity, name in given.items():
        if name not in names:
            raise UserError(
                f"{path} has no column {name!r} (--{quantity}).{suggest(name, names)} "
                f"Expected one of {', '.join(names)}."
            )
    found = {q: given.get(q, q) for q in QUANTITIES if given.get(q, q) in names}
    if "loss" not in found:
        raise UserError(
            f"{path} has no column 'loss'; expected it, or its name by --loss. The "
            f"columns are {', '.join(names)}."
        )
    if len(found.keys() & {"parameters", "tokens", "flops"}) < 2:
        raise UserError(
            f"{path}: expected two of the columns 'parameters', 'tokens' and 'flops', "
            "or their names by --parameters, --tokens and --flops. The columns are "
            f"{', '.join(names)}."
        )
    values = {
        quantity: _numbers(path, rows, name, optional=quantity == "unique_tokens")
        for quantity, name in found.items()
        if quantity != "run"
    }
    run = None
    if "run" in found:
        run = np.array([row[found["run"]] for _, row in rows])
    if not {"parameters", "tokens"} <= values.keys():
        product = values["flops"] / FLOPS_PER_PARAMETER_AND_TOKEN
        values.setdefault("parameters", product / values.get("tokens", 1.0))
        values.setdefault("tokens", product / values["parameters"])
    points = Points(
        values["parameters"],
        values["tokens"],
        values["loss"],
        values.get("unique_tokens"),
        run,
    )
    if not 0 <= without_highest < len(points):
        raise UserError(
            f"--without_highest {without_highest}: expected 0 to {len(points) - 1}, as "
            f"{path} has {len(points)} points."
        )
    kept = np.argsort(points.loss, kind="stable")[: len(points) - without_highest]
    return points.take(np.sort(kept))


def _read(path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows = [(reader.line_num, row) for row in reader]
            names = list(reader.fieldnames or ())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: {error}.") from None
    if not rows:
        raise UserError(f"{path}: expected a line of column names and points.")
    return names, rows


def _numbers(path, rows, column: str, optional: bool) -> np.ndarray:
    values = np.full(len(rows), np.inf)
    for place, (line, row) in enumerate(rows):
        text = row[column].strip()
        if optional and not text:
            continue
        try:
            values[place] = float(text)
        except ValueError:
            values[place] = np.nan
        if not (np.isfinite(values[place]) and values[place] > 0):
            raise UserError(
                f"{path}, line {line}: {column} = {text!r}; expected a positive number."
            )
    return values
