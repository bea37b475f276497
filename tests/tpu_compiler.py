"""The TPU's own compiler, libtpu, for a topology that is not there (extra plan-tpu)."""

import os

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from fmjax.sharding.mesh import on_mesh
from fmjax.sharding.xla_options import xla_options
from fmjax.training.state import plan_state
from fmjax.training.step import make_train_step

STEPS = 100


def tpu_devices(topology: str):
    """Devices of a topology such as "v5e:2x4"."""
    # Without these it asks the network for a machine, and refuses a second process.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return topologies.get_topology_desc(topology, platform="tpu").devices


def text_batch(rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch of a decoder."""
    kinds = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
    return {k: jax.ShapeDtypeStruct((rows, length), kind) for k, kind in kinds.items()}


def compiled_step(objective, optimizer, mesh_config, devices, batch):
    """The train step of an objective, compiled for these devices."""
    mesh, rules = mesh_config.build(devices), mesh_config.all_rules
    plan = plan_state(objective, optimizer, mesh, rules, train_steps=STEPS)
    step = make_train_step(
        objective,
        plan,
        lambda s: optimizer.learning_rate(s, STEPS),
        mesh,
        rules,
        seed=0,
        compiler_options=xla_options(devices[0], ()),
    )
    with on_mesh(mesh, rules):
        return step.lower(plan.shapes, batch).compile()
