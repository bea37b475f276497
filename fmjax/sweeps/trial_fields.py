"""What Optuna's storage keeps of a trial, as its user attributes."""

from typing import TYPE_CHECKING, Any

from fmjax.sweeps.config import SweepConfig
from fmjax.sweeps.space import Point, as_text

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

# The number of the trial; "run SEED" for each run that has ended; why it failed;
# whether it fell behind.
NUMBER, RUN, ERROR, STOPPED = "number", "run", "error", "stopped"


def number_of(trial: "FrozenTrial | Trial") -> int:
    """The number of a trial in its sweep."""
    return trial.user_attrs[NUMBER]


def point_of(trial: "FrozenTrial | Trial", config: SweepConfig) -> Point:
    """The values of a trial as text, in the order of the space."""
    return {name: as_text(trial.params[name]) for name in config.space}


def runs_of(trial: "FrozenTrial | Trial") -> dict[int, dict[str, Any]]:
    """Seed → what `Study.keep` kept of its run."""
    kept = {
        int(name.removeprefix(f"{RUN} ")): value
        for name, value in trial.user_attrs.items()
        if name.startswith(f"{RUN} ")
    }
    return dict(sorted(kept.items()))


def error_of(trial: "FrozenTrial") -> str:
    """Why a trial failed; "" if it did not."""
    return trial.user_attrs.get(ERROR, "")
