"""Reporting to Weights & Biases, which the extra `[wandb]` installs."""

import dataclasses
import os
import pathlib
import uuid
from collections.abc import Mapping

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import UserError
from fmjax.training.reporting.trackers.tracker import check_installed

# Holds the id of the Weights & Biases run; directories of the same name thus stay
# different runs.
FILE = "wandb_id"
_WITHOUT_LOGIN = ("offline", "disabled", "dryrun")


@configurable("wandb")
@dataclasses.dataclass(frozen=True)
class WeightsAndBiases:
    """Reports metrics to Weights & Biases; a resumed run continues the one there.

    `WANDB_MODE=offline` in the environment keeps them in the run directory's `wandb/`.

    Attributes:
      project: the project there.
    """

    project: str = runtime_field()

    def check(self) -> None:
        """Raises a UserError without the package, or without a login."""
        check_installed(self, "wandb", "wandb")
        if os.environ.get("WANDB_MODE") in _WITHOUT_LOGIN:
            return
        import wandb

        try:
            wandb.login(verify=False)
        except wandb.Error as error:
            raise UserError(
                f"@wandb() of experiment.trackers: {error} Expected a login (wandb "
                "login), or WANDB_MODE=offline in the environment."
            ) from error

    def connect(self, run_dir: pathlib.Path, config: str) -> "_Connection":
        """Starts a run there, or continues that of the run directory."""
        import wandb

        return _Connection(
            wandb.init(
                project=self.project,
                dir=run_dir,
                id=_run_id(run_dir),
                name=run_dir.name,
                resume="allow",
                config={"gin": config},
            )
        )


class _Connection:
    def __init__(self, run):
        self._run = run
        # The package's own step cannot decrease, as a run's does after a rollback.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Mapping[str, float], at: float) -> None:
        self._run.log({"step": step} | figures)

    def close(self) -> None:
        self._run.finish()


def _run_id(run_dir: pathlib.Path) -> str:
    """The id stored in the run directory; a random one is stored if there is none."""
    file = run_dir / FILE
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:16])
    return file.read_text().strip()
