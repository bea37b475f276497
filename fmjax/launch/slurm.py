"""Slurm: one process a node, requeued when it is unfinished."""

import dataclasses
import pathlib
import re
import sys
import time
from typing import Literal

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.launch.exit_codes import FINAL, UNFINISHED
from fmjax.launch.job import CONFIG, Job, check_environment, fill, shared_cache
from fmjax.launch.networks import network_environment
from fmjax.launch.shell import find_tool, output_of, patiently, quoted
from fmjax.storage.paths import is_bucket

POLL_SECONDS = 3.0
_WHERE = "Run this on a login node of the cluster."
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL",
    "OUT_OF_MEMORY", "TIMEOUT",
}  # fmt: skip


@configurable("slurm")
@dataclasses.dataclass(frozen=True)
class Slurm:
    """Jobs for Slurm.

    The run directory, the data's cache and the folder of the job's files lie on a file
    system that all nodes share; so does the Python that submits, without a container.

    Attributes:
      partition: that the job is submitted to; None for the cluster's default.
      account: that pays; None for the user's default.
      qos: quality of service; None for the user's default.
      time: limit of one start of the job, after which it is requeued.
      grace_seconds: between SIGTERM and that limit, in which a checkpoint is saved.
      restarts: of a job that failed; being told to stop, or preempted, does not count.
      exclusive: whether the job has its nodes for itself.
      container: how processes enter `image`; None to run without a container.
      image: of the container: a file, or an address such as docker://….
      mounts: "FROM:TO", folders that the container sees; the run directory is in one.
      network: between the nodes, for variables of NCCL that `fmjax config
        cluster/slurm_efa.gin` prints; None for none.
      environment: "NAME=VALUE" of the processes, also in place of those of `network`.
        Without it, FMJAX_CACHE of a container is fmjax-cache in the mount, or bucket,
        of the run directory.
      options: further options of sbatch, such as "--constraint=ib".
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str = "24:00:00"
    grace_seconds: int = 120
    restarts: int = 3
    exclusive: bool = True
    container: Literal["pyxis", "apptainer"] | None = None
    image: str | None = None
    mounts: tuple[str, ...] = ()
    network: Literal["efa", "infiniband"] | None = None
    environment: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __post_init__(self):
        require(self, "grace_seconds", self.grace_seconds > 0, "seconds above 0")
        require(self, "restarts", self.restarts >= 0, "0 or more")
        for option in self.options:
            if not option.startswith("--"):
                raise UserError(
                    f"slurm.options: {option!r}; expected options of sbatch, such as "
                    "'--constraint=ib'."
                )
        for mount in self.mounts:
            if not re.fullmatch(r"/[^:,]*:/[^:,]+(:[^:]+)?", mount):
                raise UserError(
                    f"slurm.mounts: {mount!r}; expected FROM:TO, such as "
                    "'/shared:/shared'."
                )
        if (self.container is None) != (self.image is None):
            raise UserError(
                "slurm.container and slurm.image: expected both, or neither."
            )
        check_environment(self)

    def check(self, job: Job) -> None:
        """Raises a UserError for TPUs, and for what sbatch would not understand."""
        if found := re.search(r"""[\s"'\\%,:]""", str(job.folder)):
            raise UserError(
                f"--out {job.folder}: expected a path without {found[0]!r}, which "
                "sbatch or a container would take for something else."
            )
        if job.hardware.devices_per_host is None:
            raise UserError(
                "--gpus: expected the number of GPUs of a node, or 0 for CPUs."
            )
        chip = job.hardware.chip
        if chip is not None and chip.platform == "tpu":
            raise UserError(
                f"--chips: Slurm has no {chip.name}; expected --nodes and --gpus, or "
                "--chips of GPUs."
            )
        inside = any(job.run_dir.startswith(f"{to}/") for to in self._mounted())
        if self.container and not (inside or is_bucket(job.run_dir)):
            raise UserError(
                f"--run_dir {job.run_dir}: a folder of a container is lost with it; "
                "expected a folder under the TO of one of slurm.mounts, such as "
                "'/shared:/shared', or a bucket."
            )

    def render(self, job: Job) -> dict[str, str]:
        """train.sbatch, task.sh and the config."""
        enter, python = self._container(job)
        train = job.train(str(job.folder / CONFIG))
        environment = network_environment(self.network, self.environment)
        if self.container:
            cache = shared_cache(None, job, self._mounted())
            environment = {"FMJAX_CACHE": cache} | environment
        given = {"job": job, "slurm": self}
        return {
            "train.sbatch": fill(
                "slurm.sbatch",
                **given,
                gpus=job.hardware.chips_per_host,
                environment=environment,
                enter=enter,
                final="|".join(map(str, FINAL)),
                unfinished=UNFINISHED,
            ),
            "task.sh": fill(
                "slurm_task.sh",
                **given,
                command=[python, "-m", "fmjax", *train],
                unfinished=UNFINISHED,
            ),
            CONFIG: job.config,
        }

    def _mounted(self) -> list[str]:
        """The folders of a container that are mounted."""
        return [mount.split(":")[1] for mount in self.mounts]

    def _container(self, job: Job) -> tuple[list[str], str]:
        """What stands between srun and bash, and the Python there."""
        mounts = (f"{job.folder}:{job.folder}", *self.mounts)
        if self.container == "pyxis":
            return [
                f"--container-image={self.image}",
                f"--container-mounts={','.join(mounts)}",
                "--no-container-mount-home",
            ], "python"
        if self.container == "apptainer":
            gpus = ["--nv"] if job.hardware.chips_per_host else []
            binds = [word for mount in mounts for word in ("--bind", mount)]
            return ["apptainer", "exec", *gpus, *binds, str(self.image)], "python"
        return [], sys.executable

    def commands(self, job: Job) -> dict[str, str]:
        """sbatch, tail and scancel."""
        return {
            "submit": quoted(["sbatch", str(job.folder / "train.sbatch")]),
            "follow": f"tail -F {quoted(str(job.folder / 'slurm-'))}JOB.out",
            "stop": "scancel --signal=TERM JOB   # saves, and is requeued",
            "end": "scancel JOB",
        }

    def submit(self, job: Job) -> str:
        """Submits to Slurm; returns the number of the job."""
        sbatch = find_tool("sbatch", _WHERE)
        answer = output_of([sbatch, "--parsable", str(job.folder / "train.sbatch")])
        return answer.strip().partition(";")[0]

    def follow(self, job: Job, submitted: str) -> int:
        """Prints the job's log until it leaves the queue; 0 if it completed."""
        log, place, shown = job.folder / f"slurm-{submitted}.out", 0, ""
        while True:
            state, reason = _state(submitted)
            if state != shown:
                shown = state
                because = f" ({reason})" if reason not in ("", "None") else ""
                print(f"job {submitted}: {state}{because}", flush=True)
            place = _print_from(log, place)
            if state in _ENDED:
                time.sleep(POLL_SECONDS)  # for a shared file system
                _print_from(log, place)
                return 0 if state == "COMPLETED" else 1
            time.sleep(POLL_SECONDS)


def _state(submitted: str) -> tuple[str, str]:
    """The state of a job, such as "RUNNING", and the reason why it waits.

    Slurm forgets a job minutes after its end.
    """
    found = {}
    show = ["scontrol", "--oneliner", "show", "job", submitted]
    for word in patiently(show).split():
        name, _, value = word.partition("=")
        found.setdefault(name, value)
    return found.get("JobState", "UNKNOWN"), found.get("Reason", "")


def _print_from(file: pathlib.Path, place: int) -> int:
    """Prints what a file has after a place; returns its end."""
    if not file.exists():
        return place
    with file.open("rb") as opened:
        opened.seek(place)
        text = opened.read()
    print(text.decode(errors="replace"), end="", flush=True)
    return place + len(text)
