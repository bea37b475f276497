"""Cloud TPU VMs: queued resources, whose hosts start the run by themselves."""

import dataclasses
import json
import re
import subprocess
import time

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.launch.exit_codes import FINAL, UNFINISHED
from fmjax.launch.job import (
    CONFIG,
    Job,
    check_environment,
    fill,
    jax_platforms,
    shared_cache,
)
from fmjax.launch.shell import find_tool, output_of, patiently, quoted
from fmjax.storage.paths import is_bucket

# By chip: the accelerator type, of which some count two cores a chip, and the software
# version: cloud.google.com/tpu/docs/runtimes, and the page of each chip.
_TYPES = {
    "v4": ("v4", 2, "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", 2, "v2-alpha-tpuv5"),
    "v6e": ("v6e", 1, "v2-alpha-tpuv6e"),
}
STARTUP = "startup.sh"
CREATE = "create.sh"
POLL_SECONDS = 15.0
_WHERE = "It comes with the Google Cloud SDK."
_GONE = ("SUSPENDED", "FAILED")


@configurable("tpu_vm")
@dataclasses.dataclass(frozen=True)
class TpuVm:
    """Queued resources of Cloud TPU: the machines are made, and start the run at boot.

    Every host of every slice starts the image at each boot, and again while the run is
    unfinished, whether or not the machine that launched it is still there. Spot slices
    that were taken away are made anew only while `fmjax launch` follows the job.

    Attributes:
      image: built from launch/docker/ with PLATFORM=tpu, and pushed to a registry.
      zone: of the TPUs.
      project: of Google Cloud; None for gcloud's default.
      spot: whether to take Spot capacity.
      reserved: whether to take a reservation of the project.
      network: of the machines; None for the default.
      service_account: of the machines, with access to the bucket and the registry; None
        for the default.
      runtime_version: software of the machines; None for that of the chip.
      restarts: of a run that failed; being told to stop, or preempted, does not count.
      grace_seconds: between SIGTERM and SIGKILL, in which a checkpoint is saved.
      join_seconds: that hosts wait for each other; each boots and pulls at its pace.
      cache: $FMJAX_CACHE of the hosts, for caches of data and compiled programs; None
        for fmjax-cache in the bucket of the run directory.
      environment: "NAME=VALUE" of the processes.
    """

    image: str
    zone: str
    project: str | None = None
    spot: bool = False
    reserved: bool = False
    network: str | None = None
    service_account: str | None = None
    runtime_version: str | None = None
    restarts: int = 3
    grace_seconds: int = 120
    join_seconds: int = 900
    cache: str | None = None
    environment: tuple[str, ...] = ()

    def __post_init__(self):
        require(self, "restarts", self.restarts >= 0, "0 or more")
        require(self, "grace_seconds", self.grace_seconds > 0, "seconds above 0")
        require(self, "join_seconds", self.join_seconds > 0, "seconds above 0")
        if self.spot and self.reserved:
            raise UserError("tpu_vm.spot and tpu_vm.reserved: expected one at most.")
        check_environment(self)

    def check(self, job: Job) -> None:
        """Raises a UserError for other chips, or for a folder of a host."""
        chip = job.hardware.chip
        if chip is None or chip.name not in _TYPES:
            raise UserError(
                f"--chips: Cloud TPU VMs have {', '.join(_TYPES)}; expected one of "
                "them and a number, as in v5e-256. v7x is on GKE alone."
            )
        if not is_bucket(job.run_dir):
            raise UserError(
                f"--run_dir {job.run_dir}: a folder of one host; expected "
                "gs://BUCKET/FOLDER, which all hosts share."
            )

    def render(self, job: Job) -> dict[str, str]:
        """create.sh, which asks for the machines, and what they do at boot."""
        chip = job.hardware.chip
        assert chip is not None
        kind, cores, version = _TYPES[chip.name]
        chips = job.hardware.hosts_per_slice * job.hardware.chips_per_host
        environment = [
            f"JAX_PLATFORMS={jax_platforms(chip.platform)}",
            *self.environment,
            f"FMJAX_JOIN_SECONDS={self.join_seconds}",
            f"FMJAX_CACHE={shared_cache(self.cache, job)}",
        ]
        registry = self.image.partition("/")[0]
        given = {"job": job, "tpu_vm": self}
        return {
            CREATE: fill(
                "tpu_vm_create.sh",
                **given,
                create=[
                    *self._gcloud("queued-resources", "create", job.name),
                    *self._nodes(job),
                    f"--accelerator-type={kind}-{chips * cores}",
                    f"--runtime-version={self.runtime_version or version}",
                    *(["--spot"] if self.spot else []),
                    *(["--reserved"] if self.reserved else []),
                    *([f"--network={self.network}"] if self.network else []),
                    *(
                        [f"--service-account={self.service_account}"]
                        if self.service_account
                        else []
                    ),
                    f"--metadata-from-file=startup-script={job.folder / STARTUP}",
                ],
            ),
            STARTUP: fill(
                "tpu_vm_startup.sh",
                **given,
                registry=registry if registry.endswith((".pkg.dev", "gcr.io")) else "",
                environment=environment,
                command=["fmjax", *job.train(f"/job/{CONFIG}")],
                config_file=CONFIG,
                final="|".join(map(str, FINAL)),
                unfinished=UNFINISHED,
            ),
        }

    def _nodes(self, job: Job) -> list[str]:
        slices = job.hardware.slices
        if slices == 1:
            return [f"--node-id={job.name}"]
        return [f"--node-count={slices}", f"--node-prefix={job.name}"]

    def _gcloud(self, *words: str) -> list[str]:
        project = [f"--project={self.project}"] if self.project else []
        return [
            "gcloud", "compute", "tpus", *words, f"--zone={self.zone}", *project
        ]  # fmt: skip

    def commands(self, job: Job) -> dict[str, str]:
        """create.sh, the log of the first host, and delete."""
        delete = self._gcloud("queued-resources", "delete", job.name, "--force")
        return {
            "submit": quoted(["bash", str(job.folder / CREATE)]),
            "follow": quoted(self._log_command(job)),
            "end": quoted(delete) + "   # the machines cost until then",
        }

    def _log_command(self, job: Job) -> list[str]:
        node = job.name if job.hardware.slices == 1 else f"{job.name}-0"
        unit = "--unit=google-startup-scripts"
        show = f"sudo journalctl {unit} --output=cat --follow --lines=all"
        return [
            *self._gcloud("tpu-vm", "ssh", node, "--worker=0"), f"--command={show}"
        ]  # fmt: skip

    def submit(self, job: Job) -> str:
        """Asks for the machines; returns the name of the queued resource.

        Raises:
          UserError: gcloud is missing or refuses.
        """
        find_tool("gcloud", _WHERE)
        output_of(["bash", str(job.folder / CREATE)])
        return job.name

    def follow(self, job: Job, submitted: str) -> int:
        """Prints the log of the first host until the run ends; its exit code."""
        find_tool("gcloud", _WHERE)
        describe = self._gcloud("queued-resources", "describe", submitted)
        shown, printed = "", 0
        while True:
            found = json.loads(patiently([*describe, "--format=json"]))
            state = found["state"]["state"]
            if state != shown:
                shown = state
                print(f"queued resource {submitted}: {state}", flush=True)
            if state == "ACTIVE":
                code, printed = self._print_log(job, printed)
                if code is not None:
                    return code
            elif state in _GONE and self.spot:
                print("the slice was taken away; asking for another", flush=True)
                delete = self._gcloud("queued-resources", "delete", submitted)
                output_of([*delete, "--force", "--quiet"], seconds=1800)
                output_of(["bash", str(job.folder / CREATE)])
                printed = 0
            elif state in _GONE:
                raise UserError(
                    f"queued resource {submitted}: {state}: "
                    f"{json.dumps(found['state'])}"
                )
            time.sleep(POLL_SECONDS)

    def _print_log(self, job: Job, printed: int) -> tuple[int | None, int]:
        """Prints the log of the first host until the run or the connection ends.

        Args:
          job: whose log it is.
          printed: lines that were printed before.

        Returns:
          The exit code of the run, or None, and the lines printed now.
        """
        words = self._log_command(job)
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as log:
            assert log.stdout is not None
            for number, line in enumerate(log.stdout, 1):
                if number > printed:
                    print(line, end="", flush=True)
                    printed = number
                if ended := re.search(r"fmjax ended with (\d+)$", line.strip()):
                    log.terminate()
                    return int(ended[1]), printed
        return None, printed
