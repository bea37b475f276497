"""A training step leaves frozen parameters alone, and trains them exactly when told."""

import jax
import numpy as np
import pytest
from on_meshes import build, gradients_of

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.transformer import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.freezing import Freeze
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import MeshConfig, batch_sharding, global_batch, on_mesh
from fmjax.training.checkpoint.checkpoints import Checkpoints
from fmjax.training.state import plan_state
from fmjax.training.step import make_train_step

V, T, B, N, STEPS = 50, 8, 8, 2, 4
CONFIG = TransformerConfig(num_layers=2, embed_dim=16, num_heads=2, dtype="float32")
OBJECTIVE = CausalLM(GPT(CONFIG, vocab_size=V, max_length=T))
OPTIMIZER = AdamW(schedule=Constant(learning_rate=1e-2))
FREEZE = (
    Freeze(paths=("stack/layers/**",), until=N),
    Freeze(paths=("inputs/positions/*",)),
)


def batch(step):
    ids = np.random.default_rng(step).integers(0, V, (B, T + 1)).astype(np.int32)
    weights = np.ones((B, T), np.float32)
    return {"tokens": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}


class Trainer:
    """Steps of the frozen model on a mesh."""

    def __init__(self, mesh_config=None, microbatches=1):
        self.mesh, self.rules = build(mesh_config)
        self.plan = plan_state(
            OBJECTIVE,
            OPTIMIZER,
            self.mesh,
            self.rules,
            train_steps=STEPS,
            ema=True,
            freeze=FREEZE,
        )
        self.step = make_train_step(
            OBJECTIVE,
            self.plan,
            lambda s: 1e-2,
            self.mesh,
            self.rules,
            seed=0,
            microbatches=microbatches,
            ema_decay=0.9,
        )

    def run(self, state, begin, end):
        """The states after each step, on the host, and the last one on the mesh."""
        history, norms = [], []
        sharding = batch_sharding(self.mesh, self.rules)
        with on_mesh(self.mesh, self.rules):
            for i in range(begin, end):
                placed = global_batch(batch(i), sharding, B)
                state, metrics = self.step(state, placed, self.plan.freezing.phase(i))
                history.append(jax.device_get(state))
                norms.append(float(metrics["grad_norm"]))
        return history, norms, state


@pytest.fixture(scope="module")
def trainer():
    return Trainer()


@pytest.fixture(scope="module")
def whole(trainer):
    """The first state, those after each step, and the norms of their gradients."""
    state = trainer.plan.init()
    start = jax.device_get(state)
    history, norms, _ = trainer.run(state, 0, STEPS)
    return start, history, norms


def frozen_parts(state, name):
    params = getattr(state, name)
    return params["stack"]["layers"], params["inputs"]["positions"]


def test_frozen_parameters_and_their_averages_keep_their_bits(whole):
    start, history, _ = whole
    for i, state in enumerate(history, start=1):
        for name in ("params", "ema"):
            until, forever = frozen_parts(state, name)
            before, ever = frozen_parts(start, name)
            jax.tree.map(np.testing.assert_array_equal, forever, ever)
            pairs = zip(jax.tree.leaves(until), jax.tree.leaves(before))
            same = [np.array_equal(a, b) for a, b in pairs]
            assert all(same) if i <= N else not any(same), i
            table = getattr(state, name)["tokens"]["table"]
            assert not np.array_equal(table, getattr(start, name)["tokens"]["table"])


def test_norms_are_those_of_what_is_trained(trainer, whole):
    _, _, norms = whole
    _, gradients = gradients_of(OBJECTIVE, batch(0), None, 1, trainer.plan.init())
    squares = [
        np.sum(np.square(gradient, dtype=np.float64))
        for path, gradient in gradients.items()
        if "'layers'" not in path and "'positions'" not in path
    ]
    np.testing.assert_allclose(norms[0], np.sqrt(sum(squares)), rtol=1e-5)


@pytest.mark.slow
def test_meshes_and_microbatches_compute_the_same(whole):
    _, want, norms = whole
    sharded = Trainer(MeshConfig(data=2, fsdp=2, tensor=2), microbatches=2)
    history, found, _ = sharded.run(sharded.plan.init(), 0, STEPS)
    np.testing.assert_allclose(found, norms, rtol=1e-4)
    # Adam's first updates are signs of gradients, of which some are but rounding.
    for a, b in zip(history, want, strict=True):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-3),
            a.ema,
            b.ema,
        )


@pytest.mark.parametrize("stop", [1, N])
def test_a_resumed_run_ends_with_the_same_bits(trainer, whole, tmp_path, stop):
    _, want, _ = whole
    _, _, state = trainer.run(trainer.plan.init(), 0, stop)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, {}, {})
    checkpoints.wait()
    state = checkpoints.restore(trainer.plan.shapes, stop).state
    checkpoints.close()
    history, _, _ = trainer.run(state, stop, STEPS)
    jax.tree.map(np.testing.assert_array_equal, history[-1], want[-1])


def test_frozen_parameters_cost_no_gradients(trainer):
    # A kernel is multiplied forward, for its input's gradient, and for its own.
    shapes = (trainer.plan.shapes, jax.eval_shape(lambda: batch(0)))
    with on_mesh(trainer.mesh, trainer.rules):
        products = [
            trainer.step.lower(*shapes, phase).as_text().count("dot_general")
            for phase in (0, N)
        ]
    weights = len(("query", "key", "value", "out", "in", "out"))
    assert products[1] - products[0] == weights
