"""The interface of trackers: services that a run reports its metrics to."""

import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from fmjax.errors import UserError


class Connection(Protocol):
    """Protocol of an open connection; one thread uses it, which is not the run's."""

    def log(self, step: int, figures: Mapping[str, float], at: float) -> None:
        """Reports metrics.

        Args:
          step: updates done; steps are repeated after a rollback, and if a call raised.
          figures: finite numbers by name, such as "train/loss".
          at: when they were found, in seconds since 1970.
        """

    def close(self) -> None:
        """Sends what is pending and ends the connection."""


class Tracker(Protocol):
    """Protocol of `experiment.trackers`: a configurable that metrics are reported to.

    Only the first process of a run uses it. `connect`, and what it returns, are called
    in a thread of their own: they may take any time, and what they raise is recorded as
    an event and tried again.
    """

    gin_name: ClassVar[str]

    def check(self) -> None:
        """Raises a UserError if it cannot work here, before anything is compiled."""

    def connect(self, run_dir: pathlib.Path, config: str) -> Connection:
        """Connects.

        Args:
          run_dir: the run directory; a run that resumes goes on with what it keeps
            there.
          config: the gin text of the whole experiment.
        """


def check_installed(tracker: Any, package: str, extra: str) -> None:
    """Raises a UserError if the package of a tracker is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"@{tracker.gin_name}() of experiment.trackers: the package {package} is "
            f"not installed; expected pip install 'fmjax[{extra}]'."
        )
