"""A frame of pandas with the configs and results of the runs in a folder."""

import ast
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fmjax.config.registry import register_rooms
from fmjax.evaluation.compared_runs import changes_results
from fmjax.evaluation.runs import Row, read_row
from fmjax.run import registry
from fmjax.storage.paths import given_path

if TYPE_CHECKING:
    import pandas

# Columns of each run before its bindings and its metrics.
_COLUMNS = ("state", "step", "steps", "model", "objective", "parameters")


def runs(folder: str | os.PathLike) -> "pandas.DataFrame":
    """The runs in a folder: a frame of their configs and results.

    Args:
      folder: searched at any depth, such as "runs" or the folder of a sweep.

    Returns:
      A row for each run, with its path below the folder as index. Columns: `state`,
      `step`, `steps`, `model`, `objective`, `parameters`; each binding that is not the
      same in all runs and affects results, as "OWNER.FIELD", with numbers as numbers;
      each metric of the last validation, by its name; and `best`, the lowest loss of a
      validation. What a run does not have is missing (NaN or None).

    Raises:
      UserError: there is no such folder.
    """
    import pandas

    register_rooms()
    place = given_path(folder, "folder")
    rows = [read_row(run, place) for run in registry.find_runs(place)]
    names = _differing(rows)
    found = []
    for row in rows:
        columns = {name: getattr(row, name) for name in _COLUMNS}
        bindings = {name: literal(row.bindings.get(name)) for name in names}
        metrics = {n: x for n, x in row.metrics.items() if n not in ("step", "time")}
        found.append(columns | bindings | metrics | {"best": row.best})
    index = pandas.Index([row.run for row in rows], name="run")
    return pandas.DataFrame(found, index=index)


def literal(text: str | None) -> Any:
    """The literal of a gin text; the text of what is none, such as "@adamw()"."""
    try:
        return None if text is None else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _differing(rows: Sequence[Row]) -> list[str]:
    """The bindings that are not the same in all rows and affect results, in order."""
    names = dict.fromkeys(name for row in rows for name in row.bindings)
    return [
        name
        for name in names
        if len({row.bindings.get(name) for row in rows}) > 1 and changes_results(name)
    ]
