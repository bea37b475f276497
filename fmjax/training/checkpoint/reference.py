"""Arrays that a checkpoint names in another run instead of holding them."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from fmjax.storage.paths import as_path, is_bucket


@dataclasses.dataclass(frozen=True)
class Reference:
    """Parameters that are those of another run's checkpoint.

    Attributes:
      run: directory of the other run.
      step: of its checkpoint.
      digest: of these arrays there, see `SavedState.digest_of`.
      arrays: path of a parameter in this run → its path in the other, and the dtype
        that it is cast to.
      parameters: number of parameters in them; 0 where an earlier version wrote it.
    """

    run: str
    step: int
    digest: str
    arrays: Mapping[str, tuple[str, str]]
    parameters: int = 0

    def as_json(self, run_dir: pathlib.Path) -> dict[str, Any]:
        """As stored in a checkpoint of `run_dir`, with the way from there to `run`."""
        fields = dataclasses.asdict(self)
        if not is_bucket(as_path(self.run)) and not is_bucket(run_dir):
            fields["relative"] = os.path.relpath(self.run, run_dir)
        return fields

    @classmethod
    def of_json(cls, fields: Mapping[str, Any], run_dir: pathlib.Path) -> "Reference":
        """The inverse of `as_json`; runs that were moved together are found."""
        run = fields["run"]
        if "relative" in fields and not as_path(run).is_dir():
            beside = as_path(run_dir) / fields["relative"]
            run = str(beside) if beside.is_dir() else run
        arrays = {path: tuple(pair) for path, pair in fields["arrays"].items()}
        count = fields.get("parameters", 0)
        return cls(run, fields["step"], fields["digest"], arrays, count)
