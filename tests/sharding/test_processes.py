"""Processes of a Slurm step or an MPI job take all devices of their node."""

import os

import jax
import pytest
from jax._src import clusters

from fmjax.errors import UserError
from fmjax.sharding import processes

# What Slurm sets for the second of two nodes with eight GPUs each.
SLURM = {
    "SLURM_JOB_ID": "5",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_GPUS_ON_NODE": "8",
}
EIGHT_TASKS = {
    "SLURM_NTASKS": "16", "SLURM_PROCID": "11", "SLURM_LOCALID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
ALL = list(range(8))
CASES = {
    "one task a node": (SLURM, 8, ALL),
    "one task a node, told by CUDA": (
        SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, 8, ALL,
    ),
    "a task a GPU": (SLURM | EIGHT_TASKS, 8, [3]),
    "a task a GPU, of which each sees its own": (
        SLURM | EIGHT_TASKS | {"CUDA_VISIBLE_DEVICES": "0"}, 1, [0],
    ),
    "two tasks a node": (
        SLURM | {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
        8, [4, 5, 6, 7],
    ),
    "nodes of different numbers of tasks": (
        SLURM | {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4,2"},
        8, [4, 5, 6, 7],
    ),
    "Open MPI, two a node": (OPEN_MPI, 8, [4, 5, 6, 7]),
    "Open MPI, one a node": (
        OPEN_MPI | {
            "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
        },
        8, ALL,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_processes_take_the_devices_of_their_node(case, monkeypatch):
    environment, gpus, want = CASES[case]
    for name in os.environ:
        if name.startswith(("SLURM", "OMPI", "CUDA", "FMJAX", "JAX_LOCAL")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "_gpu_files", lambda: ["/dev/nvidia"] * gpus)
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kw: given.update(kw))
    monkeypatch.setattr(processes, "meet", lambda *args: None)

    processes.join_processes(cluster=True)

    # What JAX makes of that, with all else from the environment.
    detected = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, given.get("local_device_ids"), None, 300
    )
    assert list(detected[3]) == want


def test_without_gpus_or_under_another_launcher_jax_decides():
    assert processes.local_gpus({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, 0) is None
    assert processes.local_gpus({}, 8) is None
    assert processes.local_gpus(SLURM | {"JAX_LOCAL_DEVICE_IDS": "2"}, 8) is None


def test_processes_that_do_not_divide_the_gpus_are_refused():
    three = {"SLURM_STEP_TASKS_PER_NODE": "3(x2)"}
    with pytest.raises(UserError, match="3 processes a node for 8 GPUs"):
        processes.local_gpus(SLURM | three, 8)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, []),
        (SLURM, ["1 hosts × 1 devices, 1 processes", "1 of 8 are in use"]),
        (OPEN_MPI, ["1 hosts × 1 devices, 1 processes", "1 of 8 are in use"]),
        # One GPU of a node that jobs share.
        (SLURM | {"SLURM_GPUS_ON_NODE": "1"}, ["1 hosts × 1 devices, 1 processes"]),
    ],
    ids=["no cluster", "Slurm", "Open MPI", "part of a node"],
)
def test_one_process_that_a_cluster_started_tells_its_devices(
    environment, told, monkeypatch
):
    for name in os.environ:
        if name.startswith(("SLURM", "OMPI")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(processes, "_gpu_files", lambda: ["/dev/nvidia"] * 8)
    lines = processes.describe_hosts()
    assert len(lines) == len(told)
    assert all(part in line for part, line in zip(told, lines))


def test_hosts_and_devices_are_told_and_idle_ones_warned_of():
    (line,) = processes.describe_devices([(7, 8, 8), (9, 8, 8)])
    assert line == "2 hosts × 8 devices, 2 processes"
    (line,) = processes.describe_devices([(7, 4, 8), (7, 4, 8)])
    assert line == "1 hosts × 8 devices, 2 processes"
    first, second = processes.describe_devices([(7, 1, 8), (9, 1, 8)])
    assert first == "2 hosts × 1 devices, 2 processes"
    assert "1 of 8 are in use" in second


def test_gpus_that_jax_cannot_use_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "_gpu_files", lambda: [])
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    platforms = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", None)
        processes.refuse_idle_gpus()  # a node without any
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
        with pytest.raises(UserError, match=r"has 4 GPUs .*fmjax\[gpu\]"):
            processes.refuse_idle_gpus()
        jax.config.update("jax_platforms", "cpu")
        processes.refuse_idle_gpus()
    finally:
        jax.config.update("jax_platforms", platforms)
