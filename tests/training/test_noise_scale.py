"""The gradient noise scale of linear regression, whose covariance is known."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from on_meshes import MESHES, build
from tiny_objectives import OBJECTIVES

from fmjax.errors import UserError
from fmjax.objectives.objective import Objective
from fmjax.objectives.terms import LossOutput, Term
from fmjax.sharding.mesh import batch_sharding, global_batch, on_mesh
from fmjax.training.accumulation import accumulate
from fmjax.training.noise_scale import NoiseScale, check_noise_scale
from fmjax.training.state import State
from fmjax.training.step import example_keys
from fmjax.training.train_config import TrainConfig

D, B, M, SIGMA = 6, 32, 4, 0.5
# The parameters less the true ones, where the gradient is measured.
DELTA = np.linspace(0.2, 0.7, D)


@dataclasses.dataclass(frozen=True)
class Regression(Objective):
    """Least squares: ½ (x · δ - ε)², whose rows have weights of 0 or 1."""

    model: nn.Module = nn.Dense(1)
    unit: ClassVar[str] = "tokens"
    gin_name: ClassVar[str] = "regression"

    def init(self, rng):
        return {"params": {"delta": jnp.zeros(D)}}

    def loss(self, variables, batch, rng):
        errors = batch["x"] @ variables["params"]["delta"] - batch["noise"]
        total = jnp.sum(batch["weights"] * errors**2 / 2)
        return LossOutput({"squares": Term(total, batch["weights"].sum())}, {})

    def weights(self, batch):
        return {"squares": batch["weights"].sum()}

    def check(self, rows, vocab_size):
        pass

    def train_flops_per_row(self, params, rows):
        return 0.0


def rows(rng):
    """Rows of Gaussian x and ε, of which each microbatch has another number."""
    kept = rng.random(B) < np.tile([0.9, 0.7, 0.4, 0.2], B // M)
    return {
        "x": rng.normal(size=(B, D)).astype(np.float32),
        "noise": rng.normal(0, SIGMA, B).astype(np.float32),
        "weights": kept.astype(np.float32),
    }


def measurer(mesh_config=None):
    """A function from a batch to the sums, the norm and the weight of its gradient."""
    mesh, rules = build(mesh_config)
    state = State(jnp.int32(0), {"delta": jnp.float32(DELTA)}, {}, None)

    @jax.jit
    def measure(batch):
        keys = example_keys(0, state.step, B)
        grads, metrics, _ = accumulate(
            Regression(), state, batch, keys, M, noise_scale=True
        )
        norm = jnp.linalg.norm(grads["delta"])
        return metrics["noise_scale"], norm, metrics["tokens"]

    def on_this_mesh(batch):
        with on_mesh(mesh, rules):
            placed = global_batch(batch, batch_sharding(mesh, rules), B)
            return jax.device_get(measure(placed))

    return on_this_mesh


def expected_of(batch):
    """tr(Σ) and |G|² of one batch, in float64 from mean gradients of microbatches."""
    x, noise, weights = (np.float64(batch[n]) for n in ("x", "noise", "weights"))
    each = weights[:, None] * x * (x @ DELTA - noise)[:, None]
    # Piece i has rows i, i + M, …
    counts = [weights[i::M].sum() for i in range(M)]
    means = [each[i::M].sum(0) / max(n, 1) for i, n in enumerate(counts)]
    whole = sum(counts)
    big = (each.sum(0) / whole) @ (each.sum(0) / whole)
    used = sum(n > 0 for n in counts)
    small = sum(n / whole * mean @ mean for n, mean in zip(counts, means))
    # E small = |G|² + tr(Σ) used / whole, E big = |G|² + tr(Σ) / whole.
    lhs = np.array([[1, used / whole], [1, 1 / whole]])
    square, variance = np.linalg.solve(lhs, [small, big])
    return variance, square


@pytest.mark.parametrize("mesh", [None, "data_fsdp_tensor"])
def test_one_batch_of_uneven_microbatches_is_estimated_as_numpy_does(mesh):
    measure = measurer(MESHES.get(mesh))
    batch = rows(np.random.default_rng(0))
    batch["weights"][3::M] = 0  # a microbatch of padding
    noise = NoiseScale(steps=10)
    noise.add(*measure(batch))
    figures = noise.figures()
    variance, square = expected_of(batch)
    np.testing.assert_allclose(figures["gradient_variance"], variance, rtol=1e-4)
    np.testing.assert_allclose(figures["gradient_square"], square, rtol=1e-4)


def test_the_estimate_converges_to_the_closed_form():
    # The gradient of a row is x (x · δ - ε): its mean is δ, its covariance
    # (|δ|² + σ²) I + δ δᵀ, by Isserlis' theorem.
    square = DELTA @ DELTA
    variance = D * (square + SIGMA**2) + square
    measure, rng = measurer(), np.random.default_rng(1)
    noise = NoiseScale(steps=3000)
    for _ in range(6000):
        noise.add(*measure(rows(rng)))
    figures = noise.figures()
    np.testing.assert_allclose(figures["gradient_variance"], variance, rtol=0.03)
    np.testing.assert_allclose(figures["gradient_square"], square, rtol=0.03)
    np.testing.assert_allclose(figures["noise_scale"], variance / square, rtol=0.04)


def test_averages_that_are_saved_go_on_to_the_bit():
    measure, rng = measurer(), np.random.default_rng(2)
    steps = [measure(rows(rng)) for _ in range(6)]
    whole, first = NoiseScale(steps=4), NoiseScale(steps=4)
    for step in steps:
        whole.add(*step)
    for step in steps[:3]:
        first.add(*step)
    rest = NoiseScale(steps=4, saved=first.state)
    for step in steps[3:]:
        rest.add(*step)
    assert rest.figures() == whole.figures()


def test_steps_without_two_microbatches_or_not_finite_are_left_out():
    noise = NoiseScale(steps=4)
    assert np.isnan(noise.figures()["noise_scale"])
    one = {"squares": np.float32(1), "microbatches": np.float32(1)}
    noise.add(one, 1.0, 10.0)
    noise.add({"squares": np.float32(np.nan), "microbatches": np.float32(2)}, 1.0, 9.0)
    assert noise.state["weight"] == 0


@pytest.mark.parametrize(
    ("objective", "options", "match"),
    [
        ("causal_lm", {}, r"found train\.microbatches = 1; expected 2"),
        ("nt_xent", {"microbatches": 2}, r"@nt_xent\(\) compares the rows"),
    ],
)
def test_what_has_no_noise_scale_is_refused_by_name(objective, options, match):
    run = TrainConfig(noise_scale=100, **options)
    with pytest.raises(UserError, match=r"train\.noise_scale = 100.*" + match):
        check_noise_scale(run, OBJECTIVES[objective].objective)
    with pytest.raises(UserError, match=r"train\.noise_scale = 0: expected at least 1"):
        TrainConfig(noise_scale=0)
