"""GKE: a JobSet of one pod a host, for slices of TPUs or nodes of GPUs."""

import dataclasses
import json
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

# Label of the nodes, by chip: cloud.google.com/kubernetes-engine/docs (TPUs, GPUs).
ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "v7x": "tpu7x",
    "a100": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}
MANIFEST = "jobset.yaml"
CONFIG_FOLDER = "/etc/fmjax"
COORDINATOR_PORT = 8476  # JAX's
POLL_SECONDS = 5.0
_WHERE = "It comes with the Google Cloud SDK."


@configurable("gke")
@dataclasses.dataclass(frozen=True)
class Gke:
    """JobSets for Google Kubernetes Engine.

    The cluster has node pools of the chips and JobSet's controller. Pods reach the
    bucket of the run directory through Workload Identity (`service_account`).

    Attributes:
      image: built from launch/docker/ and pushed to a registry.
      namespace: of Kubernetes.
      service_account: of Kubernetes, with access to the bucket; None for the default.
      queue: local queue of Kueue; None to start without one. XPK's is
        'multislice-queue'.
      priority: PriorityClass of the pods; None for the default.
      spot: whether to run on Spot VMs.
      reservation: of Compute Engine that the nodes are of; None for any.
      restarts: of a job that failed; being told to stop, or preempted, does not count.
      grace_seconds: between SIGTERM and SIGKILL, in which a checkpoint is saved. Spot
        VMs give 30 at most.
      join_seconds: that processes wait for each other; pulls of an image differ.
      cache: $FMJAX_CACHE of the pods, for caches of data and compiled programs; None
        for fmjax-cache in the bucket of the run directory.
      mounts: pairs (bucket, folder), mounted by Cloud Storage FUSE.
      environment: "NAME=VALUE" of the processes.
      accelerator: label of the nodes (cloud.google.com/gke-accelerator or
        gke-tpu-accelerator); None for that of the chip.
      annotations: pairs of the pods, as for networks of GPUs.
      privileged: whether containers are.
      keep_seconds: after the end, before the JobSet is deleted.
    """

    image: str
    namespace: str = "default"
    service_account: str | None = None
    queue: str | None = None
    priority: str | None = None
    spot: bool = False
    reservation: str | None = None
    restarts: int = 3
    grace_seconds: int = 120
    join_seconds: int = 900
    cache: str | None = None
    mounts: tuple[tuple[str, str], ...] = ()
    environment: tuple[str, ...] = ()
    accelerator: str | None = None
    annotations: tuple[tuple[str, str], ...] = ()
    privileged: bool = False
    keep_seconds: int = 86400

    def __post_init__(self):
        require(self, "restarts", self.restarts >= 0, "0 or more")
        require(self, "grace_seconds", self.grace_seconds > 0, "seconds above 0")
        require(self, "join_seconds", self.join_seconds > 0, "seconds above 0")
        require(self, "keep_seconds", self.keep_seconds >= 0, "0 or more seconds")
        check_environment(self)

    def check(self, job: Job) -> None:
        """Raises a UserError without a chip, or for a folder of this machine."""
        if job.hardware.chip is None:
            raise UserError("--chips: expected a kind and a number, as in v5e-256.")
        mounted = any(job.run_dir.startswith(f"{to}/") for _, to in self.mounts)
        if not (is_bucket(job.run_dir) or mounted):
            raise UserError(
                f"--run_dir {job.run_dir}: a folder of a pod is lost with it; expected "
                "gs://BUCKET/FOLDER, or a folder under one of gke.mounts."
            )

    def render(self, job: Job) -> dict[str, str]:
        """The manifest: a ConfigMap with the config, and the JobSet."""
        chip = job.hardware.chip
        assert chip is not None
        tpu = chip.platform == "tpu"
        environment = {"JAX_PLATFORMS": jax_platforms(chip.platform)}
        environment |= dict(each.split("=", 1) for each in self.environment)
        environment["FMJAX_JOIN_SECONDS"] = str(self.join_seconds)
        mounts = [folder for _, folder in self.mounts]
        environment["FMJAX_CACHE"] = shared_cache(self.cache, job, mounts)
        if not tpu:
            environment |= {
                "FMJAX_COORDINATOR": f"{job.name}-slice-0-0.{job.name}"
                f":{COORDINATOR_PORT}",
                "FMJAX_NUM_PROCESSES": str(job.hardware.hosts),
                "FMJAX_HOSTS": ",".join(
                    f"{job.name}-slice-0-{index}" for index in range(job.hardware.hosts)
                ),
            }
        text = fill(
            "jobset.yaml",
            job=job,
            gke=self,
            tpu=tpu,
            accelerator=self.accelerator or ACCELERATORS[chip.name],
            topology="x".join(map(str, job.hardware.shape)),
            environment=environment,
            command=["fmjax", *job.train(f"{CONFIG_FOLDER}/{CONFIG}")],
            config_folder=CONFIG_FOLDER,
            config_name=CONFIG,
            unfinished=UNFINISHED,
            final=list(FINAL),
        )
        return {MANIFEST: text}

    def commands(self, job: Job) -> dict[str, str]:
        """kubectl apply, logs and delete."""
        kubectl = ["kubectl", f"--namespace={self.namespace}"]
        pods = f"--selector=jobset.sigs.k8s.io/jobset-name={job.name}"
        first = (
            f"{pods},jobset.sigs.k8s.io/job-index=0,"
            "batch.kubernetes.io/job-completion-index=0"
        )
        return {
            "submit": quoted([*kubectl, "apply", "-f", str(job.folder / MANIFEST)]),
            "follow": quoted([*kubectl, "logs", "--follow", first]),
            "end": quoted([*kubectl, "delete", "jobset", job.name]),
        }

    def submit(self, job: Job) -> str:
        """Applies the manifest; returns the name of the JobSet.

        Raises:
          UserError: there is a JobSet of this name, or kubectl refuses.
        """
        kubectl = [find_tool("kubectl", _WHERE), f"--namespace={self.namespace}"]
        there = [*kubectl, "get", "jobset", job.name, "--ignore-not-found", "-o=name"]
        if output_of(there).strip():
            raise UserError(
                f"--name {job.name}: there is a JobSet of this name. Delete it "
                f"({self.commands(job)['end']}), or give another --name."
            )
        manifest = str(job.folder / MANIFEST)
        # The server checks all of it, quotas and policies too, before anything starts.
        output_of([*kubectl, "apply", "--dry-run=server", "-f", manifest])
        output_of([*kubectl, "apply", "-f", manifest])
        return job.name

    def follow(self, job: Job, submitted: str) -> int:
        """Prints the log of process 0 until the JobSet ends; 0 if it completed."""
        kubectl = [find_tool("kubectl", _WHERE), f"--namespace={self.namespace}"]
        selector = (
            f"--selector=jobset.sigs.k8s.io/jobset-name={submitted},"
            "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
        )
        shown, last = "", ""
        while True:
            jobset = json.loads(
                patiently([*kubectl, "get", "jobset", submitted, "-o=json"])
            )
            pods = json.loads(patiently([*kubectl, "get", "pods", selector, "-o=json"]))
            newest = max(
                pods["items"],
                key=lambda pod: pod["metadata"]["creationTimestamp"],
                default=None,
            )
            phase = newest["status"]["phase"] if newest else "no pod yet"
            name = newest["metadata"]["name"] if newest else ""
            if (told := f"{name} {phase}".strip()) != shown:
                shown = told
                print(f"jobset {submitted}: {told}", flush=True)
            if phase in ("Running", "Succeeded", "Failed"):
                last = _print_log([*kubectl, "logs", name], last)
            state = jobset.get("status", {}).get("terminalState", "")
            if state:
                print(f"jobset {submitted}: {state}", flush=True)
                return 0 if state == "Completed" else 1
            time.sleep(POLL_SECONDS)


def _print_log(logs: list[str], last: str) -> str:
    """Prints a pod's log until it ends or the connection does.

    Args:
      logs: `kubectl logs POD`.
      last: time of the last line that was printed; "" for none.

    Returns:
      The time of the last line now.
    """
    since = [f"--since-time={last}"] if last else []
    with subprocess.Popen(
        [*logs, "--follow", "--timestamps", *since], stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        for line in following.stdout:
            moment, _, text = line.partition(" ")
            if moment > last:
                print(text, end="", flush=True)
                last = moment
    return last
