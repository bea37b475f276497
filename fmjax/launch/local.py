"""This machine: processes that train together, as on a cluster."""

import dataclasses

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.launch.job import CONFIG, Job, check_environment
from fmjax.launch.shell import quoted
from fmjax.launch.supervisor import supervise


@configurable("local")
@dataclasses.dataclass(frozen=True)
class Local:
    """Several processes of this machine.

    Attributes:
      restarts: of a run that failed.
      environment: "NAME=VALUE" of the processes.
    """

    restarts: int = 0
    environment: tuple[str, ...] = ()

    def __post_init__(self):
        require(self, "restarts", self.restarts >= 0, "0 or more")
        check_environment(self)

    def check(self, job: Job) -> None:
        """Raises a UserError for chips, which are not here."""
        if job.hardware.chip is not None:
            raise UserError("--chips: expected --nodes, and --devices if virtual.")

    def render(self, job: Job) -> dict[str, str]:
        """The config."""
        return {CONFIG: job.config}

    def commands(self, job: Job) -> dict[str, str]:
        """launch/local.py."""
        hardware = job.hardware
        devices = hardware.devices_per_host
        each = ["--devices_per_process", str(devices)] if devices else []
        words = [
            *("python", "launch/local.py", "--processes", str(hardware.hosts)),
            *each,
            *(["--restarts", str(self.restarts)] if self.restarts else []),
            "--",
            *self._train(job),
        ]
        return {"submit": quoted(words)}

    def _train(self, job: Job) -> list[str]:
        # The supervisor tells the processes their places.
        words = job.train(str(job.folder / CONFIG))
        return [word for word in words if word != "--cluster"]

    def submit(self, job: Job) -> str:
        """Does nothing: the processes are this command's, which follows them."""
        return job.name

    def follow(self, job: Job, submitted: str) -> int:
        """Runs the processes until they end; returns their exit code."""
        return supervise(
            self._train(job),
            job.hardware.hosts,
            job.hardware.devices_per_host,
            environment=dict(each.split("=", 1) for each in self.environment),
            restarts=self.restarts,
        )
