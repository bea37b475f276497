"""Minimization of Huber losses: a grid of starts, L-BFGS, and the bootstrap."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float64

DELTA = 1e-3  # Hoffmann et al. 2022, appendix D.3
_MEMORY = 10  # updates that L-BFGS keeps
# Starts of the grid that are followed, and L-BFGS's steps with them, round by round.
# Each round is in units of where the last one ended.
_ROUNDS = ((256, 15), (64, 30), (64, 60), (64, 60))
_RESAMPLED_ROUNDS = (100, 100)
_LANES = 64  # fits that are made at once; more are other calls of the same program
_GRADIENT = 1e-8  # of the loss over delta, in whitened parameters
# Directions in which a start hardly changes the prediction are not stretched further.
_RIDGE = 1e-9

Predict = Callable[[Float64[Array, " P"]], Float64[Array, " n"]]


def huber_sum(residuals: np.ndarray, delta: float = DELTA) -> float:
    """The sum of Huber losses: r²/2 up to delta, delta (|r| − delta/2) beyond.

    Args:
      residuals: float64 [n].
      delta: where the loss becomes linear.
    """
    return float(np.sum(_huber(np, np.abs(residuals), delta)))


class HuberFit:
    """The fit of predictions to targets by the smallest sum of Huber losses.

    Starts are followed by L-BFGS at once. Parameters are whitened by the Gauss-Newton
    matrix of each start, since exponents and log-coefficients of a power law nearly
    make up for each other.

    Args:
      predict: parameters float64 [P] → predictions float64 [n], in JAX.
      targets: float64 [n].
      delta: where the Huber loss becomes linear.
    """

    def __init__(self, predict: Predict, targets: np.ndarray, delta: float = DELTA):
        self._points = len(targets)
        objective = _objective(predict, targets, delta)
        self._losses = jax.jit(jax.vmap(objective, in_axes=(0, None)))
        descend = _descend(predict, objective)
        self._descend = jax.jit(jax.vmap(descend, in_axes=(0, 0, None)))

    def minimize(self, starts: np.ndarray) -> np.ndarray:
        """The best parameters that any of the starts leads to.

        Args:
          starts: float64 [S, P].

        Returns:
          float64 [P].
        """
        thetas = starts
        for count, steps in _ROUNDS:
            thetas = self._best(thetas)[:count]
            thetas = self._follow(thetas, np.ones((len(thetas), self._points)), steps)
        return self._best(thetas)[0]

    def resampled(self, start: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The parameters for resampled points, each found from the same start.

        Args:
          start: float64 [P]; the fit to all points.
          weights: float64 [B, n]; how often each resample has each point.

        Returns:
          float64 [B, P].
        """
        thetas = np.tile(start, (len(weights), 1))
        for steps in _RESAMPLED_ROUNDS:
            thetas = self._follow(thetas, weights, steps)
        return thetas

    def _best(self, thetas: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            losses = np.asarray(self._losses(thetas, np.ones(self._points)))
        return thetas[np.argsort(np.where(np.isfinite(losses), losses, np.inf))]

    def _follow(self, thetas: np.ndarray, weights: np.ndarray, steps: int):
        count = len(thetas)
        lanes = np.arange(-(-count // _LANES) * _LANES).reshape(-1, _LANES) % count
        with jax.enable_x64(True):
            ends = [self._descend(thetas[i], weights[i], steps) for i in lanes]
        return np.concatenate(ends)[:count]


def resamples(points: int, count: int, distinct: int, seed: int) -> np.ndarray:
    """Weights of resampled points: how often each point was drawn, with replacement.

    Args:
      points: number of points.
      count: number of resamples.
      distinct: how many different points a resample has at least; with fewer than
        parameters, a law is not determined.
      seed: of the random numbers.

    Returns:
      float64 [count, points].
    """
    random = np.random.default_rng(seed)
    weights = np.zeros((count, points))
    for row in weights:
        while np.count_nonzero(row) < distinct:
            row[:] = np.bincount(random.integers(points, size=points), minlength=points)
    return weights


def _huber(numpy, distance, delta):
    square, line = distance**2 / 2, delta * (distance - delta / 2)
    return numpy.where(distance <= delta, square, line)


def _objective(predict, targets, delta):
    def objective(theta, weights):
        distance = jnp.abs(predict(theta) - targets)
        return jnp.sum(weights * _huber(jnp, distance, delta)) / delta

    return objective


def _descend(predict, objective):
    optimizer = optax.lbfgs(
        memory_size=_MEMORY,
        linesearch=optax.scale_by_zoom_linesearch(
            max_linesearch_steps=20, initial_guess_strategy="one"
        ),
    )

    def descend(start, weights, steps):
        slopes = jax.jacobian(predict)(start)
        curvature = slopes.T @ (weights[:, None] * slopes)
        values, vectors = jnp.linalg.eigh(curvature)
        values = jnp.maximum(values, _RIDGE * values[-1])
        whitening = vectors / jnp.sqrt(values)

        def whitened(z):
            return objective(start + whitening @ z, weights)

        evaluate = optax.value_and_grad_from_state(whitened)

        def step(carry):
            z, state, count, _ = carry
            value, slope = evaluate(z, state=state)
            update, state = optimizer.update(
                slope, state, z, value=value, grad=slope, value_fn=whitened
            )
            z = optax.apply_updates(z, update)
            return z, state, count + 1, jnp.max(jnp.abs(slope))

        def goes_on(carry):
            return (carry[2] < steps) & (carry[3] > _GRADIENT)

        origin = jnp.zeros_like(start)
        carry = origin, optimizer.init(origin), 0, jnp.inf
        z, *_ = jax.lax.while_loop(goes_on, step, carry)
        end = start + whitening @ z
        # A line search that failed leaves no worse, and no undefined, parameters.
        better = objective(end, weights) <= objective(start, weights)
        return jnp.where(better, end, start)

    return descend
