"""Reporting to Weights & Biases, which the extra `[wandb]` installs."""

import importlib.util
import pathlib
import uuid

from fmjax.errors import UserError

# Holds the id of the Weights & Biases run; directories of the same name thus stay
# different runs.
FILE = "wandb_id"


def check_installed(project: str) -> None:
    """Raises a UserError where the package is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"train.wandb_project = {project!r}: the package wandb is not installed; "
            "expected None, or pip install 'fmjax[wandb]'."
        )


class WeightsAndBiases:
    """Reports metrics of a run; a resumed run continues its Weights & Biases run.

    Metrics are plotted over a metric "step", because the package's own step cannot
    decrease, as a run's step does after a rollback.

    Args:
      run_dir: the run directory; keeps the id, and data that was not sent yet.
      project: Weights & Biases project.
      config: text stored with the run.

    Raises:
      UserError: there is no login, or the project cannot be reached.
    """

    def __init__(self, run_dir: pathlib.Path, project: str, config: str):
        import wandb

        try:
            self._run = wandb.init(
                project=project,
                dir=run_dir,
                id=_run_id(run_dir),
                name=run_dir.name,
                resume="allow",
                config={"gin": config},
            )
        except wandb.Error as error:
            raise UserError(
                f"train.wandb_project = {project!r}: {error} Expected a login (wandb "
                "login), or WANDB_MODE=offline in the environment."
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Reports the metrics of a step."""
        self._run.log({"step": step} | figures)

    def close(self) -> None:
        """Sends pending data and ends the connection."""
        self._run.finish()


def _run_id(run_dir: pathlib.Path) -> str:
    """The id stored in the run directory; a random one is stored if there is none."""
    file = run_dir / FILE
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:16])
    return file.read_text().strip()
