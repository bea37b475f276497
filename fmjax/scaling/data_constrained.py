"""The law of repeated data of Muennighoff et al. 2023 (arXiv:2305.16264)."""

import dataclasses
from typing import ClassVar

import numpy as np

from fmjax.scaling.laws import HoffmannLaw, Model, minimize_loss


@dataclasses.dataclass(frozen=True)
class DataConstrainedLaw(HoffmannLaw):
    """L = E + A / N'^α + B / D'^β with effective parameters and data (equation 5, 6).

    D' = U + U R_D (1 − exp(−R/R_D)) with U unique tokens and R = D/U − 1 repetitions.
    N' likewise, with U_N, the N for which U is optimal, in the place of U. Fitted to
    runs with dropout, without those whose loss rose again: it cannot predict
    overfitting.

    Attributes:
      R_D: how many repetitions are worth as much as 1 − 1/e as many new tokens.
      R_N: the same of parameters.
    """

    form: ClassVar[str] = "muennighoff"

    R_D: float
    R_N: float

    def constrained_loss(self, parameters, tokens, unique):
        """L(N, D) of a number of unique tokens.

        Args:
          parameters: N, float64 [...].
          tokens: D, repetitions included, float64 [...].
          unique: U, tokens, float64 [...].

        Returns:
          float64 [...].
        """
        N, D = np.asarray(parameters, np.float64), np.asarray(tokens, np.float64)
        U = np.minimum(unique, D)
        U_N = np.minimum(self.parameters_for(U), N)
        return self.loss(_effective(N, U_N, self.R_N), _effective(D, U, self.R_D))

    def constrained_optimum(self, flops: float, unique: float) -> Model:
        """The N and D of the lowest loss of a budget and so many unique tokens."""
        return minimize_loss(lambda N, D: self.constrained_loss(N, D, unique), flops)

    def worth(self, epochs: float) -> float:
        """What a token is worth after so many epochs, in new ones: dD'/dD."""
        return float(np.exp(-(max(epochs, 1.0) - 1.0) / self.R_D))

    def floor(self, unique: float) -> float:
        """The lowest loss that so many unique tokens can give, with any compute."""
        N = float(self.parameters_for(unique)) * (1 + self.R_N)
        return float(self.loss(N, unique * (1 + self.R_D)))


def repeated(law: HoffmannLaw, like: DataConstrainedLaw) -> DataConstrainedLaw:
    """A law with the repetition constants of another, unless it has its own."""
    if isinstance(law, DataConstrainedLaw):
        return law
    constants = dataclasses.asdict(law)
    return DataConstrainedLaw(**constants, R_D=like.R_D, R_N=like.R_N)


def _effective(total, unique, scale):
    return unique * (1 + scale * -np.expm1(-(total / unique - 1) / scale))
