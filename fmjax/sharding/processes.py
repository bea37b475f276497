"""Joining the processes of one run."""

import os

import jax

from fmjax.errors import UserError

VARIABLES = ("FMJAX_COORDINATOR", "FMJAX_NUM_PROCESSES", "FMJAX_PROCESS_ID")


def join_processes(cluster: bool = False) -> None:
    """Connects this process to the others of its run; must precede any use of devices.

    `launch/local.py` and the cluster launchers set FMJAX_COORDINATOR (host:port),
    FMJAX_NUM_PROCESSES and FMJAX_PROCESS_ID. Without them a process runs alone, unless
    `cluster` asks JAX to find the others itself (Slurm, Cloud TPU, GKE, MPI).

    Raises:
      UserError: if only some of the variables are set.
    """
    given = [name for name in VARIABLES if os.environ.get(name)]
    if given and len(given) < len(VARIABLES):
        missing = ", ".join(name for name in VARIABLES if name not in given)
        raise UserError(f"{', '.join(given)} set without {missing}.")
    if given:
        coordinator, count, index = (os.environ[name] for name in VARIABLES)
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=int(count),
            process_id=int(index),
        )
    elif cluster:
        jax.distributed.initialize()
