"""Scaling laws: the loss of a model of N parameters that is trained on D tokens.

Losses are in nats a token, budgets in FLOPs with C = 6 N D (Kaplan et al. 2020). Arrays
are float64 NumPy and broadcast.
"""

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import numpy as np
from scipy import optimize

FLOPS_PER_PARAMETER_AND_TOKEN = 6.0
_GRID = 512  # sizes among which the minimum is looked for before it is refined


class Model(NamedTuple):
    """A model that is trained.

    Attributes:
      parameters: N.
      tokens: D.
      loss: nats a token; None if it is not known.
    """

    parameters: float
    tokens: float
    loss: float | None


class Law(abc.ABC):
    """A scaling law.

    Subclasses are frozen dataclasses whose fields are the law's constants, as they are
    stored.

    Attributes:
      form: name of the formula, in files and in `fmjax scaling fit --law`.
      note: on what N, D and C are, for whoever reads a result; "" if as above.
    """

    form: ClassVar[str]
    note: ClassVar[str] = ""


class LossLaw(Law):
    """A law that gives the loss of every N and D."""

    @abc.abstractmethod
    def loss(self, parameters, tokens):
        """L(N, D), nats a token.

        Args:
          parameters: N, float64 [...].
          tokens: D, float64 [...].

        Returns:
          float64 [...].
        """


class SizingLaw(Law):
    """A law that divides a budget between parameters and tokens."""

    @abc.abstractmethod
    def optimum(self, flops: float) -> Model:
        """The N and D of the lowest loss for a budget.

        Args:
          flops: C.
        """


class SurfaceLaw(LossLaw, SizingLaw):
    """A law whose loss has a lowest point on every budget."""

    def optimum(self, flops: float) -> Model:
        """The N and D of the lowest loss with C = 6 N D, by minimization over log N."""
        return minimize_loss(self.loss, flops)


def minimize_loss(loss, flops: float) -> Model:
    """The lowest loss with C = 6 N D, by minimization over log N.

    Args:
      loss: L(N, D) of arrays.
      flops: C.
    """
    product = flops / FLOPS_PER_PARAMETER_AND_TOKEN

    def of_size(log_parameters):
        parameters = np.exp(log_parameters)
        return loss(parameters, product / parameters)

    grid = np.linspace(0.0, np.log(product), _GRID)
    best = int(np.argmin(of_size(grid)))
    around = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    found = optimize.minimize_scalar(
        of_size, bounds=around, method="bounded", options={"xatol": 1e-9}
    )
    parameters = float(np.exp(found.x))
    return Model(parameters, product / parameters, float(found.fun))


@dataclasses.dataclass(frozen=True)
class HoffmannLaw(SurfaceLaw):
    """L(N, D) = E + A / N^α + B / D^β (Hoffmann et al. 2022, equation 2).

    Attributes:
      E: irreducible loss, nats a token.
      A: of the term of parameters.
      B: of the term of tokens.
      alpha: exponent of parameters.
      beta: exponent of tokens.
    """

    form: ClassVar[str] = "hoffmann"

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters, tokens):
        """L(N, D)."""
        N, D = np.asarray(parameters, np.float64), np.asarray(tokens, np.float64)
        return self.E + self.A * N**-self.alpha + self.B * D**-self.beta

    def optimum(self, flops: float) -> Model:
        """N = G (C/6)^(β/(α+β)), D = (C/6)^(α/(α+β)) / G (ibid., equation 4)."""
        product = flops / FLOPS_PER_PARAMETER_AND_TOKEN
        N = self.balance * product ** (self.beta / (self.alpha + self.beta))
        return Model(N, product / N, float(self.loss(N, product / N)))

    @property
    def balance(self) -> float:
        """G = (αA / βB)^(1/(α+β))."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        return ratio ** (1.0 / (self.alpha + self.beta))

    def parameters_for(self, tokens):
        """The N for which D is optimal: G (G D)^(β/α)."""
        D = np.asarray(tokens, np.float64)
        return self.balance * (self.balance * D) ** (self.beta / self.alpha)


@dataclasses.dataclass(frozen=True)
class Frontier(SizingLaw):
    """The best models alone: N = k C^a, D = C / 6N, L = E + (C_c / C)^γ.

    What isoFLOP parabolas and the envelope of training curves give (Hoffmann et al.
    2022, approaches 2 and 1).

    Attributes:
      k: parameters at 1 FLOP.
      a: exponent of parameters.
      E: irreducible loss, nats a token.
      C_c: FLOPs at which the loss is 1 nat a token above it.
      gamma: exponent of the loss.
    """

    form: ClassVar[str] = "frontier"

    k: float
    a: float
    E: float
    C_c: float
    gamma: float

    def optimum(self, flops: float) -> Model:
        """N, D and L of a budget."""
        N = self.k * flops**self.a
        D = flops / FLOPS_PER_PARAMETER_AND_TOKEN / N
        return Model(N, D, self.E + (self.C_c / flops) ** self.gamma)
