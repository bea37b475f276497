"""The power laws of Kaplan et al. 2020 (arXiv:2001.08361).

N is without embeddings, and so is C = 6 N D.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from fmjax.scaling.laws import (
    FLOPS_PER_PARAMETER_AND_TOKEN,
    LossLaw,
    Model,
    SurfaceLaw,
)

PF_DAY = 1e15 * 86400.0  # FLOPs
_BISECTIONS = 100
_WITHOUT_EMBEDDINGS = "N is without embeddings"


@dataclasses.dataclass(frozen=True)
class ParametersLaw(LossLaw):
    """L(N) = (N_c / N)^α_N: trained to convergence on ample data (equation 1.1).

    Attributes:
      N_c: parameters.
      alpha_N: exponent.
    """

    form: ClassVar[str] = "kaplan_parameters"
    note: ClassVar[str] = _WITHOUT_EMBEDDINGS

    N_c: float
    alpha_N: float

    def loss(self, parameters, tokens):
        """L(N)."""
        return (self.N_c / np.asarray(parameters, np.float64)) ** self.alpha_N


@dataclasses.dataclass(frozen=True)
class TokensLaw(LossLaw):
    """L(D) = (D_c / D)^α_D: large models, stopped early (equation 1.2).

    Attributes:
      D_c: tokens.
      alpha_D: exponent.
    """

    form: ClassVar[str] = "kaplan_tokens"

    D_c: float
    alpha_D: float

    def loss(self, parameters, tokens):
        """L(D)."""
        return (self.D_c / np.asarray(tokens, np.float64)) ** self.alpha_D


@dataclasses.dataclass(frozen=True)
class FlopsLaw(LossLaw):
    """L(C_min) = (C_c / C_min)^α_C: the best models of a budget (equation 1.3).

    Attributes:
      C_c: FLOPs.
      alpha_C: exponent.
    """

    form: ClassVar[str] = "kaplan_flops"
    note: ClassVar[str] = _WITHOUT_EMBEDDINGS

    C_c: float
    alpha_C: float

    def loss(self, parameters, tokens):
        """L(6 N D)."""
        N, D = np.asarray(parameters, np.float64), np.asarray(tokens, np.float64)
        flops = FLOPS_PER_PARAMETER_AND_TOKEN * N * D
        return (self.C_c / flops) ** self.alpha_C


@dataclasses.dataclass(frozen=True)
class JointLaw(SurfaceLaw):
    """L(N, D) = ((N_c/N)^(α_N/α_D) + D_c/D)^α_D (equation 1.5).

    Its constants are others than those of L(N) and L(D).

    Attributes:
      N_c: parameters.
      D_c: tokens.
      alpha_N: exponent of parameters.
      alpha_D: exponent of tokens.
    """

    form: ClassVar[str] = "kaplan_joint"
    note: ClassVar[str] = (
        f"{_WITHOUT_EMBEDDINGS}; the published constants are of models trained to "
        "convergence on D tokens"
    )

    N_c: float
    D_c: float
    alpha_N: float
    alpha_D: float

    def loss(self, parameters, tokens):
        """L(N, D)."""
        N, D = np.asarray(parameters, np.float64), np.asarray(tokens, np.float64)
        of_size = (self.N_c / N) ** (self.alpha_N / self.alpha_D)
        return (of_size + self.D_c / D) ** self.alpha_D


@dataclasses.dataclass(frozen=True)
class ComputeLaw(SurfaceLaw):
    """L(C_min) = (C_c / C_min)^α_C at N = k C_min^p_N (equations 1.3 and 6.1).

    Other sizes need more compute for the same loss than the best size N' does, by

        C / C' = (N / N') (1 + α_S/α_N (1 − (N'/N)^α_N))^(−1/α_S)

    (appendix B.4), which gives L(N, D) with C = 6 N D.

    Attributes:
      C_c: FLOPs.
      alpha_C: exponent of the loss.
      k: parameters at 1 FLOP.
      p_N: exponent of parameters.
      alpha_N: exponent of parameters in L(N, S).
      alpha_S: exponent of steps in L(N, S).
    """

    form: ClassVar[str] = "kaplan"
    note: ClassVar[str] = (
        f"{_WITHOUT_EMBEDDINGS}; C is the least compute, of batches far below the "
        "critical size, at which tokens and FLOPs are twice as many"
    )

    C_c: float
    alpha_C: float
    k: float
    p_N: float
    alpha_N: float
    alpha_S: float

    def optimum(self, flops: float) -> Model:
        """N, D and L of a budget."""
        N = self.k * flops**self.p_N
        D = flops / FLOPS_PER_PARAMETER_AND_TOKEN / N
        return Model(N, D, float((self.C_c / flops) ** self.alpha_C))

    def loss(self, parameters, tokens):
        """L(N, D), from the budget with which the best size has the same loss."""
        N, D = np.asarray(parameters, np.float64), np.asarray(tokens, np.float64)
        budget = np.log(FLOPS_PER_PARAMETER_AND_TOKEN * N * D)
        # The needed compute grows with the budget of the best size: bisection.
        low, high = budget - 200.0, budget + 0.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            enough = self._needed(N, middle) <= budget
            low, high = np.where(enough, middle, low), np.where(enough, high, middle)
        return np.exp(self.alpha_C * (np.log(self.C_c) - low))

    def excess(self, ratio):
        """C / C' of a size N = ratio · N'; infinite where the loss is out of reach."""
        ratio = np.asarray(ratio, np.float64)
        slope = self.alpha_S / self.alpha_N
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            steps = 1 + slope * (1 - ratio**-self.alpha_N)
            return np.where(
                steps > 0, ratio * np.abs(steps) ** (-1 / self.alpha_S), np.inf
            )

    def _needed(self, N, log_best):
        """log C that a size needs for the loss that exp(log_best) gives the best."""
        ratio = np.exp(np.log(N) - np.log(self.k) - self.p_N * log_best)
        with np.errstate(divide="ignore"):
            return log_best + np.log(self.excess(ratio))
