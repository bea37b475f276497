"""Figures of a run at Weights & Biases, which the extra `[wandb]` installs."""

import importlib.util
import pathlib
import uuid

from fmjax.errors import UserError

# Names the run there: run directories of one name are different runs.
FILE = "wandb_id"


def check_installed(project: str) -> None:
    """Raises a UserError where the package is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"train.wandb_project = {project!r}: the package wandb is not installed; "
            "expected None, or pip install 'fmjax[wandb]'."
        )


class WeightsAndBiases:
    """Reports a run; the same run again where its directory was reported before.

    Figures are plotted over "step", a figure like the others: the package's own step
    never goes back, as that of a run does after a rollback.

    Args:
      run_dir: the run directory; keeps the id, and what was not sent yet.
      project: where to.
      config: text stored with the run.

    Raises:
      UserError: nobody is logged in, or the project cannot be reached.
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
        """The figures of a step."""
        self._run.log({"step": step} | figures)

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()


def _run_id(run_dir: pathlib.Path) -> str:
    """The id in the run directory, a random one where there is none yet."""
    file = run_dir / FILE
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:16])
    return file.read_text().strip()
