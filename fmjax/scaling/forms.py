"""Laws as a fit sees them: unconstrained parameters → log loss of points, in JAX.

Sums of power laws are taken by log-sum-exp, and coefficients are fitted as their
logarithms (Hoffmann et al. 2022, appendix D.3).
"""

import abc
import itertools
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, Float64

from fmjax.scaling import kaplan
from fmjax.scaling.data_constrained import DataConstrainedLaw
from fmjax.scaling.laws import HoffmannLaw, LossLaw
from fmjax.scaling.points import Points

# Starts are made of shares of the loss and of exponents. Grids of the coefficients
# themselves, as Hoffmann's, are of the sizes and units of their runs alone.
_SHARES = (0.02, 0.1, 0.3)
_EXPONENTS = (0.05, 0.1, 0.3, 0.6, 1.0)
_REPETITIONS = (1.0, 4.0, 16.0)


class Form(abc.ABC):
    """The formula of a law on given points.

    Args:
      points: runs.

    Attributes:
      parameters: how many are fitted.
      distinct: quantity → how many values of it the points need.
    """

    parameters: ClassVar[int]
    distinct: ClassVar[dict[str, int]]

    def __init__(self, points: Points):
        self.points = points
        self.N, self.D = np.log(points.parameters), np.log(points.tokens)
        self.level = np.median(np.log(points.loss))

    @abc.abstractmethod
    def predict(self, theta: Float64[Array, " P"]) -> Float64[Array, " n"]:
        """Log losses of the points."""

    @abc.abstractmethod
    def law(self, theta: np.ndarray) -> LossLaw:
        """The law with parameters float64 [P]."""

    @abc.abstractmethod
    def starts(self) -> np.ndarray:
        """Parameters to start from, float64 [S, P]."""


class HoffmannForm(Form):
    """log E, A and B, α, β."""

    parameters = 5
    distinct: ClassVar[dict[str, int]] = {"parameters": 3, "tokens": 3}

    def predict(self, theta):
        """LSE(a − α log N, b − β log D, e)."""
        e, a, b, alpha, beta = theta
        return _log_sum(e, a - alpha * self.N, b - beta * self.D)

    def law(self, theta):
        """HoffmannLaw."""
        E, A, B = np.exp(theta[:3]).tolist()
        return HoffmannLaw(E, A, B, float(theta[3]), float(theta[4]))

    def starts(self):
        """Shares of the terms at the middle of the points, and exponents."""
        N, D, level = np.median(self.N), np.median(self.D), self.level
        choices = itertools.product(_SHARES, _SHARES, _EXPONENTS, _EXPONENTS)
        starts = [
            (
                level + np.log(1 - of_size - of_data),
                level + np.log(of_size) + alpha * N,
                level + np.log(of_data) + beta * D,
                alpha,
                beta,
            )
            for of_size, of_data, alpha, beta in choices
        ]
        return np.array(starts)


class DataConstrainedForm(HoffmannForm):
    """log E, A and B, α = β, log R_D and R_N.

    Muennighoff et al. fit the first four to runs of a single epoch, and R_D and R_N to
    the others; here all are fitted to all points.
    """

    parameters = 6
    distinct: ClassVar[dict[str, int]] = {
        "parameters": 3,
        "tokens": 3,
        "unique_tokens": 1,
    }

    def predict(self, theta):
        """LSE(a − α log N', b − α log D', e)."""
        e, a, b, alpha, log_R_D, log_R_N = theta
        U = np.minimum(np.log(self.points.unique_tokens), self.D)
        # With α = β the N for which U is optimal is G² U.
        U_N = jnp.minimum(U + (a - b) / alpha, self.N)
        constrained = np.isfinite(self.points.unique_tokens)
        N = _log_effective(self.N, U_N, log_R_N)
        D = _log_effective(self.D, U, log_R_D)
        N = jnp.where(constrained, N, self.N)
        return _log_sum(e, a - alpha * N, b - alpha * D)

    def law(self, theta):
        """DataConstrainedLaw."""
        E, A, B, R_D, R_N = np.exp(theta[[0, 1, 2, 4, 5]]).tolist()
        alpha = float(theta[3])
        return DataConstrainedLaw(E, A, B, alpha, alpha, R_D, R_N)

    def starts(self):
        """Those of Hoffmann's law with α = β, and repetitions."""
        tied = [start[:4] for start in super().starts() if start[3] == start[4]]
        scales = itertools.product(np.log(_REPETITIONS), repeat=2)
        return np.array([(*s, *r) for s, r in itertools.product(tied, scales)])


class KaplanJointForm(Form):
    """log N_c and D_c, α_N, α_D."""

    parameters = 4
    distinct: ClassVar[dict[str, int]] = {"parameters": 2, "tokens": 2}

    def predict(self, theta):
        """α_D LSE(α_N/α_D (log N_c − log N), log D_c − log D)."""
        log_N_c, log_D_c, alpha_N, alpha_D = theta
        of_size = alpha_N / alpha_D * (log_N_c - self.N)
        return alpha_D * _log_sum(of_size, log_D_c - self.D)

    def law(self, theta):
        """JointLaw."""
        N_c, D_c = np.exp(theta[:2]).tolist()
        return kaplan.JointLaw(N_c, D_c, float(theta[2]), float(theta[3]))

    def starts(self):
        """Shares of the terms at the middle of the points, and exponents."""
        starts = []
        for share, alpha_N, alpha_D in itertools.product(
            (0.1, 0.5, 0.9), _EXPONENTS, _EXPONENTS
        ):
            whole = self.level / alpha_D
            N_c = np.median(self.N) + (np.log(share) + whole) * alpha_D / alpha_N
            D_c = np.median(self.D) + np.log(1 - share) + whole
            starts.append((N_c, D_c, alpha_N, alpha_D))
        return np.array(starts)


class _PowerForm(Form):
    """Log loss at the middle of the points, and α, of L = (c / x)^α."""

    parameters = 2
    quantity: ClassVar[str]
    made: ClassVar[Callable[[float, float], LossLaw]]

    def __init__(self, points):
        super().__init__(points)
        self.x = np.log(getattr(points, self.quantity))

    def predict(self, theta):
        """Level − α (log x − its median)."""
        level, alpha = theta
        return level - alpha * (self.x - np.median(self.x))

    def law(self, theta):
        """The power law."""
        level, alpha = theta
        return self.made(float(np.exp(level / alpha + np.median(self.x))), float(alpha))

    def starts(self):
        """The median of the losses, and exponents."""
        return np.array([(self.level, alpha) for alpha in _EXPONENTS])


class ParametersForm(_PowerForm):
    """L(N)."""

    quantity, made = "parameters", kaplan.ParametersLaw
    distinct: ClassVar[dict[str, int]] = {"parameters": 2}


class TokensForm(_PowerForm):
    """L(D)."""

    quantity, made = "tokens", kaplan.TokensLaw
    distinct: ClassVar[dict[str, int]] = {"tokens": 2}


class FlopsForm(_PowerForm):
    """L(C)."""

    quantity, made = "flops", kaplan.FlopsLaw
    distinct: ClassVar[dict[str, int]] = {"flops": 2}


FORMS: dict[str, type[Form]] = {
    "hoffmann": HoffmannForm,
    "muennighoff": DataConstrainedForm,
    "kaplan_joint": KaplanJointForm,
    "kaplan_parameters": ParametersForm,
    "kaplan_tokens": TokensForm,
    "kaplan_flops": FlopsForm,
}


def _log_sum(*terms):
    return logsumexp(jnp.stack(jnp.broadcast_arrays(*terms)), axis=0)


def _log_effective(total, unique, log_scale):
    """Log of U (1 + R* (1 − exp(−R/R*))), of the logs of total, U and R*."""
    scale = jnp.exp(log_scale)
    repetitions = jnp.expm1(total - unique)
    return unique + jnp.log1p(-scale * jnp.expm1(-repetitions / scale))
