"""Training steps of fmjax and of PyTorch, timed alternately in one process.

Both use AdamW, gradient clipping and the same arrays; float32 on CPUs, bfloat16 with
float32 parameters on GPUs. Ratios of the two are comparable between machines; seconds
are not.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

# By default JAX preallocates three quarters of a GPU's memory, which PyTorch needs too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn

from fmjax.objectives.objective import Objective
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Constant
from fmjax.sharding.chips import peak_flops
from fmjax.sharding.mesh import MeshConfig, batch_sharding, global_batch, on_mesh
from fmjax.sharding.xla_options import xla_options
from fmjax.training.state import plan_state
from fmjax.training.step import make_train_step

Arrays = dict[str, np.ndarray]
OPTIMIZER = AdamW(schedule=Constant(learning_rate=1e-4, warmup_steps=0))


class Contender(NamedTuple):
    """A way to train a model.

    Attributes:
      step: makes one update on the batch; returns the loss before it.
      parameters: number of parameters.
    """

    step: Callable[[], float]
    parameters: int


class Timing(NamedTuple):
    """Timing of a contender.

    Attributes:
      first_loss: loss before any update.
      seconds: seconds of each timed step.
    """

    first_loss: float
    seconds: list[float]

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range of the step times, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


def take_turns(
    steps: dict[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times all steps alternately, `rounds` times, after two rounds of warm-up."""
    first = {name: step() for name, step in steps.items()}
    timings = {name: Timing(loss, []) for name, loss in first.items()}
    for i in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if i:
                timings[name].seconds.append(clock() - start)
    return timings


def fmjax_step(objective: Objective, batch: Arrays, params: Any = None) -> Contender:
    """The training step of `fmjax train`, on one device.

    Args:
      objective: the training objective.
      batch: the arrays that it reads.
      params: initial parameters; None for random ones.
    """
    mesh_config = MeshConfig()
    mesh, rules = mesh_config.build(jax.devices()[:1]), mesh_config.all_rules
    plan = plan_state(objective, OPTIMIZER, mesh, rules, train_steps=100)
    train = make_train_step(
        objective,
        plan,
        lambda s: OPTIMIZER.learning_rate(s, 100),
        mesh,
        rules,
        seed=0,
        compiler_options=xla_options(mesh.devices.flat[0], ()),
    )
    rows = len(next(iter(batch.values())))
    data = global_batch(batch, batch_sharding(mesh, rules), rows)
    state = plan.init()
    if params is not None:
        # Copied, because the state is donated.
        params = jax.tree.map(np.array, params)
        put = jax.device_put(params, plan.shardings.params)
        state = state.__class__(state.step, put, state.extra, state.opt_state)

    def step() -> float:
        nonlocal state
        with on_mesh(mesh, rules):
            state, metrics = train(state, data)
        return float(jax.block_until_ready(metrics["loss"]))

    return Contender(step, sum(x.size for x in jax.tree.leaves(plan.shapes.params)))


def torch_step(
    model: torch.nn.Module,
    loss_of: Callable[..., torch.Tensor],
    batch: Arrays,
    *,
    compiled: bool = False,
) -> Contender:
    """A training step in PyTorch with the same optimizer.

    Args:
      model: holds all parameters.
      loss_of: (model, **batch) → loss.
      batch: the arrays that it reads; integers become int64.
      compiled: whether `loss_of` is compiled by torch.compile.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
        lr=1e-4,
        betas=(OPTIMIZER.b1, OPTIMIZER.b2),
        eps=OPTIMIZER.eps,
        weight_decay=OPTIMIZER.weight_decay,
        fused=True,
    )
    arrays = {name: torch.tensor(x, device=device) for name, x in batch.items()}
    arrays = {n: x if x.is_floating_point() else x.long() for n, x in arrays.items()}

    def loss() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return loss_of(model, **arrays)

    run = torch.compile(loss) if compiled else loss

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = run()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return value.item()

    # Counted as fmjax does: BART's bias of logits, which is a buffer here, is trained
    # there; Marian's positions, an untrained parameter here, are computed there.
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    stored = {
        tensor.data_ptr(): tensor.numel()
        for name, tensor in model.state_dict().items()
        if name not in fixed
    }
    return Contender(step, sum(stored.values()))


def train_flops(objective: Objective, batch: Arrays) -> float:
    """Model FLOPs of a training step, by the objective's formula."""
    shapes = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))
    rows = {name: x.shape[1:] for name, x in batch.items()}
    count = len(next(iter(batch.values())))
    return count * objective.train_flops_per_row(shapes["params"], rows)


class Peak:
    """Peak FLOP/s of a device: by its data sheet, or by matrix products timed here."""

    SIZE = 1536

    def __init__(self):
        """Makes a step of each library's matrix product, unless the peak is known."""
        self.known = peak_flops(jax.devices()[0])
        ours = jnp.ones((self.SIZE, self.SIZE), jnp.float32)
        theirs = torch.ones(self.SIZE, self.SIZE)
        product = jax.jit(jnp.matmul)
        self.steps = {
            "XLA's product": lambda: product(ours, ours).block_until_ready(),
            "PyTorch's product": lambda: theirs @ theirs,
        }
        if self.known:
            self.steps = {}

    def flops(self, timings: dict[str, Timing]) -> float:
        """Peak FLOP/s, if not known by the fastest of the timed matrix products."""
        if self.known:
            return self.known
        fastest = min(min(timings[name].seconds) for name in self.steps)
        return 2 * self.SIZE**3 / fastest
