"""Processes of a run: joining them, and the devices that each uses."""

import glob
import os
import re
import shutil
import socket
import subprocess
import zlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from fmjax.errors import UserError
from fmjax.sharding.rendezvous import CannotJoin, Facts, Place, meet, seconds_to_join

VARIABLES = ("FMJAX_COORDINATOR", "FMJAX_NUM_PROCESSES", "FMJAX_PROCESS_ID")


def use_virtual_devices(count: int) -> None:
    """Makes `count` virtual CPU devices; must be called before any use of devices.

    Raises:
      UserError: the count is below 1.
    """
    if count < 1:
        raise UserError(f"--devices {count}: expected 1 or more virtual devices.")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def join_processes(cluster: bool = False, facts: Facts | None = None) -> None:
    """Connects this process to the others of its run; call it before using devices.

    `launch/local.py` and the cluster launchers set FMJAX_COORDINATOR (host:port),
    FMJAX_NUM_PROCESSES and FMJAX_PROCESS_ID. Without them a process runs alone, unless
    `cluster` is true: JAX then detects the cluster (Slurm, Cloud TPU, GKE, MPI).

    Args:
      cluster: whether to detect a cluster.
      facts: that must be the same in all processes, such as versions of libraries.

    Raises:
      CannotJoin: a process did not come within $FMJAX_JOIN_SECONDS.
      UserError: only some of the variables are set, there is no cluster, a process
        has other facts, or JAX cannot use the GPUs of this node.
    """
    seconds = seconds_to_join()
    place = _given_place()
    gpus = None
    if place is None and cluster:
        gpus = local_gpus(os.environ, len(_gpu_files()))
        place = _detected_place(seconds)
    if place is None:
        return
    if place.count > 1:
        meet(place, facts or {}, seconds)
    try:
        jax.distributed.initialize(
            coordinator_address=place.coordinator,
            num_processes=place.count,
            process_id=place.index,
            local_device_ids=gpus,
            initialization_timeout=int(max(seconds, 60)),
        )
    except RuntimeError as error:  # JAX's own timeout is one.
        raise CannotJoin(
            f"{place.name(place.index)} could not join {place.coordinator}: {error}"
        ) from error
    if cluster:
        refuse_idle_gpus()


def refuse_idle_gpus() -> None:
    """Raises a UserError if this node has GPUs for the job and JAX finds none.

    JAX then takes CPUs, with no more than a warning. $JAX_PLATFORMS is a choice.
    """
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or len(_gpu_files()))
    if gpus and not jax.config.jax_platforms and jax.default_backend() == "cpu":
        raise UserError(
            f"{socket.gethostname()} has {gpus} GPUs for this job, and JAX finds none; "
            "expected pip install 'fmjax[gpu]', or an image for GPUs. "
            "JAX_PLATFORMS=cpu trains on CPUs."
        )


def _given_place() -> Place | None:
    """The place that FMJAX_… variables tell; None without them."""
    given = [name for name in VARIABLES if os.environ.get(name)]
    if given and len(given) < len(VARIABLES):
        missing = ", ".join(name for name in VARIABLES if name not in given)
        raise UserError(f"{', '.join(given)} set without {missing}.")
    if not given:
        return None
    coordinator, *numbers = (os.environ[name] for name in VARIABLES)
    for name, number in zip(VARIABLES[1:], numbers):
        if not number.isdigit():
            raise UserError(f"{name} = {number!r}: expected a number.")
    count, index = map(int, numbers)
    if index >= count:
        raise UserError(f"FMJAX_PROCESS_ID = {index}: expected less than {count}.")
    hosts = [host for host in os.environ.get("FMJAX_HOSTS", "").split(",") if host]
    return Place(coordinator, count, index, hosts)


def _detected_place(seconds: float) -> Place:
    """The place in the cluster that JAX detects.

    Raises:
      UserError: it detects none.
    """
    # Its detection is private, but gives what errors need: which host is which process.
    from jax._src.clusters import ClusterEnv

    coordinator, count, index, _ = ClusterEnv.auto_detect_unset_distributed_params(
        os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, [], None, int(seconds)
    )
    if coordinator is None or count is None or index is None:
        raise UserError(
            "--cluster: neither Slurm, a Cloud TPU, GKE nor Open MPI was detected; "
            f"expected one of them, or {', '.join(VARIABLES)}."
        )
    return Place(coordinator, count, index, _hosts(count))


def _hosts(count: int) -> Sequence[str]:
    """Hosts by process in Slurm's blocks or on a slice of TPUs; empty if unknown."""
    if "SLURM_STEP_NODELIST" in os.environ and shutil.which("scontrol"):
        nodes = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]],
            capture_output=True,
            text=True,
        ).stdout.split()
        tasks = _tasks_per_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        hosts = [node for node, each in zip(nodes, tasks) for _ in range(each)]
    else:
        hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return hosts if len(hosts) == count else ()


def local_gpus(environ: Mapping[str, str], on_machine: int) -> list[int] | None:
    """The GPUs for this process of a Slurm step or an MPI job.

    JAX by default gives a process the one GPU of its local rank, so that with one
    process per node all other GPUs idle. Here the GPUs visible on a node are divided
    among its processes, unless each process sees only its own GPUs.

    Args:
      environ: the environment variables.
      on_machine: number of GPUs of this machine.

    Returns:
      Indices among the visible GPUs; None leaves the choice to JAX: without GPUs, under
      another launcher, or with $JAX_LOCAL_DEVICE_IDS.

    Raises:
      UserError: the number of processes of a node does not divide its GPUs.
    """
    place = _place_on_node(environ)
    if place is None or environ.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    index, processes = place
    named = environ.get("CUDA_VISIBLE_DEVICES") or environ.get("ROCR_VISIBLE_DEVICES")
    on_node = int(environ.get("SLURM_GPUS_ON_NODE") or on_machine)
    visible = len(named.split(",")) if named else on_node
    if visible == 0:
        return None
    if processes == 1 or visible < on_node:
        return list(range(visible))
    if visible % processes:
        raise UserError(
            f"{processes} processes a node for {visible} GPUs: expected a number that "
            "divides them; `fmjax launch slurm` takes one process a node."
        )
    each = visible // processes
    return list(range(index * each, (index + 1) * each))


def _place_on_node(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """(local rank, processes on the node) from the environment; None if not set."""
    if "SLURM_LOCALID" in environ and "SLURM_PROCID" in environ:
        counts = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get(
            "SLURM_TASKS_PER_NODE", "1"
        )
        node = int(environ.get("SLURM_NODEID", 0))
        return int(environ["SLURM_LOCALID"]), _tasks_per_node(counts)[node]
    if "OMPI_COMM_WORLD_LOCAL_RANK" in environ:
        size = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
        return int(environ["OMPI_COMM_WORLD_LOCAL_RANK"]), size
    return None


def _tasks_per_node(text: str) -> list[int]:
    """Parses Slurm's tasks per node: "2(x3),1" → [2, 2, 2, 1]."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in parts for _ in range(int(times or 1))]


def describe_hosts() -> list[str]:
    """Lines for the log: hosts and devices of a run, and a warning of idle GPUs.

    Every process must call it. There are no lines for a run of one process that neither
    Slurm, Open MPI nor `join_processes` has started.
    """
    ranks = {"SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"}
    launched = jax.distributed.is_initialized() or ranks & os.environ.keys()
    if jax.process_count() == 1 and not launched:
        return []
    host, gpus = zlib.crc32(socket.gethostname().encode()) & 0x7FFFFFFF, 0
    if jax.default_backend() == "gpu":
        # Of a node that jobs share, Slurm's number is of this job's GPUs alone.
        gpus = int(os.environ.get("SLURM_GPUS_ON_NODE") or len(_gpu_files()))
    own = np.array([host, jax.local_device_count(), gpus])
    told = multihost_utils.process_allgather(own).reshape(-1, 3).tolist()
    return describe_devices([tuple(each) for each in told])


def describe_devices(told: list[tuple[int, int, int]]) -> list[str]:
    """The lines of `describe_hosts`.

    Args:
      told: for each process (id of its host, number of its devices, number of the
        host's GPUs).
    """
    used: dict[int, int] = {}
    for host, devices, _ in told:
        used[host] = used.get(host, 0) + devices
    counts = sorted(set(used.values()))
    each = " or ".join(map(str, counts))
    lines = [f"{len(used)} hosts × {each} devices, {len(told)} processes"]
    there = {host: gpus for host, _, gpus in told}
    idle = [host for host in used if used[host] < there[host]]
    if idle:
        host = idle[0]
        lines.append(
            f"warning: of the GPUs of {len(idle)} hosts some idle: {used[host]} of "
            f"{there[host]} are in use. Look at $CUDA_VISIBLE_DEVICES and at how many "
            "processes a node the launcher starts."
        )
    return lines


def _gpu_files() -> list[str]:
    return glob.glob("/dev/nvidia[0-9]*")
