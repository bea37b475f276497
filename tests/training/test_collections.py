"""Collections that a loss writes: kept by the step, in order, on every mesh.

The reference is float64 NumPy.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from on_meshes import build

from fmjax.objectives.objective import EmbeddingObjective, Objective
from fmjax.objectives.terms import LossOutput, Term
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import MeshConfig, batch_sharding, global_batch, on_mesh
from fmjax.training.bad_steps import STOP, BadSteps
from fmjax.training.checkpoint.checkpoints import Checkpoints
from fmjax.training.state import plan_state
from fmjax.training.step import make_eval_step, make_train_step

B, D, E, DECAY, STEPS = 8, 3, 2, 0.75, 3


class Centered(nn.Module):
    """x W less the running mean of x W, as a BatchNorm that centers alone."""

    @nn.compact
    def __call__(self, x, train):
        y = x @ self.param("kernel", nn.initializers.normal(1.0), (D, E))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (E,))
        out = y - mean.value
        if train:
            mean.value = DECAY * mean.value + (1 - DECAY) * y.mean(0)
        return out


@dataclasses.dataclass(frozen=True)
class Spread(Objective):
    """Σ of the squares of what the model gives."""

    model: nn.Module = Centered()
    unit = "images"

    def init(self, rng):
        return self.model.init(rng, jnp.zeros((1, D)), train=False)

    def loss(self, variables, batch, rng):
        y, new = self.model.apply(
            variables, batch["x"], rng is not None, mutable=["batch_stats"]
        )
        term = Term((y**2).sum(), self.weights(batch)["squares"])
        return LossOutput({"squares": term}, {}, new)

    def weights(self, batch):
        return {"squares": jnp.float32(len(batch["x"]))}

    def check(self, rows, vocab_size):
        pass

    def train_flops_per_row(self, params, rows):
        return 0.0


@dataclasses.dataclass(frozen=True)
class Queue(Spread, EmbeddingObjective):
    """The same through embeddings, which a queue keeps for the next batch."""

    def init(self, rng):
        variables = super().init(rng)
        return variables | {"queue": {"last": jnp.ones((B, E))}}

    def embed(self, variables, batch, rng):
        y, new = self.model.apply(
            variables, batch["x"], rng is not None, mutable=["batch_stats"]
        )
        return {"y": y}, LossOutput({}, {}, new)

    def loss_from_embeddings(self, variables, embeddings, batch, rng):
        y = embeddings["y"]
        products = y @ variables["queue"]["last"].T
        term = Term((products**2).sum(), self.weights(batch)["squares"])
        return LossOutput({"squares": term}, {}, {"queue": {"last": y}})

    loss = EmbeddingObjective.loss


def batch(step):
    x = np.random.default_rng(step).normal(1.0, 1.0, (B, D)).astype(np.float32)
    return {"x": x}


class Trainer:
    """Steps of an objective on a mesh."""

    def __init__(self, objective, mesh=None, microbatches=1, bad_steps=STOP):
        self.mesh, self.rules = build(mesh)
        self.plan = plan_state(
            objective,
            AdamW(schedule=Constant(learning_rate=0.1)),
            self.mesh,
            self.rules,
            train_steps=STEPS,
            ema=True,
            bad_steps=bad_steps,
        )
        self.step = make_train_step(
            objective,
            self.plan,
            lambda step: 0.1,
            self.mesh,
            self.rules,
            seed=0,
            microbatches=microbatches,
            ema_decay=0.5,
        )

    def run(self, batches, state=None):
        """States on the host, the first and that after each step; norms; the last."""
        state = self.plan.init() if state is None else state
        history, norms = [jax.device_get(state)], []
        with on_mesh(self.mesh, self.rules):
            for data in batches:
                placed = global_batch(data, batch_sharding(self.mesh, self.rules), B)
                state, metrics = self.step(state, placed)
                history.append(jax.device_get(state))
                norms.append(float(metrics["grad_norm"]))
        return history, norms, state


def mean_of(state):
    return state.extra["batch_stats"]["mean"]


@pytest.mark.parametrize(
    ("mesh", "microbatches"), [(None, 1), (None, 4), (MeshConfig(data=4, fsdp=2), 1)]
)
def test_running_means_go_from_microbatch_to_microbatch_and_step_to_step(
    mesh, microbatches
):
    trainer = Trainer(Spread(), mesh, microbatches)
    history, norms, _ = trainer.run([batch(i) for i in range(STEPS)])
    mean = np.zeros(E)
    for i in range(STEPS):
        kernel = np.float64(history[i].params["kernel"])
        gradient = np.zeros((D, E))
        for piece in range(microbatches):
            x = np.float64(batch(i)["x"][piece::microbatches])
            y = x @ kernel
            gradient += 2 * x.T @ (y - mean) / B
            mean = DECAY * mean + (1 - DECAY) * y.mean(0)
        np.testing.assert_allclose(norms[i], np.linalg.norm(gradient), rtol=1e-5)
        np.testing.assert_allclose(mean_of(history[i + 1]), mean, rtol=1e-5)
    # The averaged parameters are evaluated with the newest collections.
    assert history[-1].eval_variables["batch_stats"]["mean"] is mean_of(history[-1])


def test_collections_are_resumed_from_a_checkpoint_to_the_bit(tmp_path):
    trainer = Trainer(Spread(), microbatches=2)
    whole, _, _ = trainer.run([batch(i) for i in range(STEPS)])
    _, _, state = trainer.run([batch(0)])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, {}, {})
    checkpoints.wait()
    state = checkpoints.restore(trainer.plan.shapes, 1).state
    checkpoints.close()
    history, _, _ = trainer.run([batch(i) for i in range(1, STEPS)], state)
    assert np.abs(mean_of(history[-1])).min() > 0
    jax.tree.map(np.testing.assert_array_equal, history[-1], whole[-1])


def test_a_bad_step_leaves_collections_as_they_were():
    trainer = Trainer(Spread(), bad_steps=BadSteps(not_finite="skip"))
    bad = {"x": np.full((B, D), np.nan, np.float32)}
    history, _, _ = trainer.run([batch(0), bad])
    jax.tree.map(np.testing.assert_array_equal, history[2].extra, history[1].extra)
    assert np.isfinite(mean_of(history[1])).all()


def test_evaluation_reads_collections():
    kernel = np.float32([[1, 0], [0, 1], [0, 0]])
    variables = {"params": {"kernel": kernel}, "batch_stats": {"mean": np.float32(5)}}
    terms, _, count = make_eval_step(Spread())(variables, batch(0))
    assert count == B
    want = ((np.float64(batch(0)["x"]) @ kernel - 5) ** 2).sum()
    np.testing.assert_allclose(terms["squares"][0], want, rtol=1e-5)


@pytest.mark.parametrize("microbatches", [1, 4])
def test_a_queue_of_embeddings_is_that_of_the_whole_batch(microbatches):
    history, norms, _ = Trainer(Queue(), microbatches=microbatches).run(
        [batch(i) for i in range(2)]
    )
    mean, queue = np.zeros(E), np.ones((B, E))
    for i in range(2):
        kernel, y = np.float64(history[i].params["kernel"]), np.zeros((B, E))
        x = np.float64(batch(i)["x"])
        for piece in range(microbatches):
            rows = slice(piece, None, microbatches)
            y[rows] = x[rows] @ kernel - mean
            mean = DECAY * mean + (1 - DECAY) * (x[rows] @ kernel).mean(0)
        gradient = 2 * x.T @ (y @ queue.T @ queue) / B
        np.testing.assert_allclose(norms[i], np.linalg.norm(gradient), rtol=1e-5)
        queue = y
        found = history[i + 1].extra
        np.testing.assert_allclose(found["queue"]["last"], queue, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["batch_stats"]["mean"], mean, rtol=1e-5)


def test_a_collection_of_another_shape_is_refused():
    class Grows(Spread):
        def loss(self, variables, batch, rng):
            out = super().loss(variables, batch, rng)
            return out._replace(collections={"batch_stats": {"mean": jnp.zeros(9)}})

    with pytest.raises(ValueError, match="batch_stats"):
        Trainer(Grows()).run([batch(0)])
