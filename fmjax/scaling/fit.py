"""Fits of laws to points, with intervals by the bootstrap."""

import dataclasses

import numpy as np

from fmjax.errors import UserError, suggest
from fmjax.scaling.data_constrained import DataConstrainedLaw
from fmjax.scaling.forms import FORMS
from fmjax.scaling.huber import DELTA, HuberFit, huber_sum, resamples
from fmjax.scaling.laws import Law, LossLaw
from fmjax.scaling.points import Points

PERCENTILES = (2.5, 97.5)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law that was fitted to points.

    Attributes:
      law: with the best parameters.
      points: how many it was fitted to.
      method: how, for whoever reads a file of it.
      samples: the laws of resampled points; empty without bootstrap.
      huber_sum: sum of Huber losses of log losses; None for laws without a loss of N
        and D.
      delta: of these; None likewise.
      budgets: FLOPs of isoFLOP parabolas, if they were given.
    """

    law: Law
    points: int
    method: str
    samples: tuple[Law, ...] = dataclasses.field(default=(), repr=False)
    huber_sum: float | None = None
    delta: float | None = None
    budgets: tuple[float, ...] = ()

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Constant of the law → 95% interval; empty without bootstrap."""
        if not self.samples:
            return {}
        return {
            field.name: interval([getattr(s, field.name) for s in self.samples])
            for field in dataclasses.fields(self.law)
        }

    def loss_interval(self, parameters: float, tokens: float):
        """95% interval of the loss of a model, by the resampled laws.

        It is of the law, without the noise of a single run.

        Args:
          parameters: N.
          tokens: D.

        Returns:
          (lowest, highest), nats a token; None without bootstrap, or if the law knows
          the best models alone.
        """
        laws = [law for law in self.samples if isinstance(law, LossLaw)]
        losses = [float(law.loss(parameters, tokens)) for law in laws]
        return interval(losses) if losses else None


def interval(values) -> tuple[float, float]:
    """The middle 95% of values [S]."""
    low, high = np.percentile(np.asarray(values, np.float64), PERCENTILES)
    return float(low), float(high)


def fit_law(
    name: str,
    points: Points,
    bootstrap: int = 0,
    seed: int = 0,
    delta: float = DELTA,
) -> Fit:
    """Fits a law by Huber losses of log losses (Hoffmann et al. 2022, appendix D.3).

    Args:
      name: one of `FORMS`.
      points: runs.
      bootstrap: how many times points are resampled for intervals.
      seed: of the resampling.
      delta: where the Huber loss becomes linear.

    Raises:
      UserError: there is no such law, or the points do not determine it.
    """
    if name not in FORMS:
        raise UserError(
            f"--law {name}: expected one of {', '.join(FORMS)}.{suggest(name, FORMS)}"
        )
    kind = FORMS[name]
    check_determined(name, points)
    if bootstrap and len(points) == kind.parameters:
        raise UserError(
            f"--bootstrap {bootstrap}: expected 0, or more points: {len(points)} are "
            f"as many as the parameters of {name}, and all resamples are the same."
        )
    form, targets = kind(points), np.log(points.loss)
    huber = HuberFit(form.predict, targets, delta)
    best = huber.minimize(form.starts())
    law, samples = form.law(best), ()
    if not np.isfinite(dataclasses.astuple(law)).all():
        raise UserError(
            f"--law {name}: the points do not determine its constants ({law})."
        )
    if bootstrap:
        weights = resamples(len(points), bootstrap, kind.parameters, seed)
        samples = tuple(map(form.law, huber.resampled(best, weights)))
    residuals = log_losses(law, points) - targets
    return Fit(
        law, len(points), "huber", samples, huber_sum(residuals, delta), float(delta)
    )


def log_losses(law: LossLaw, points: Points) -> np.ndarray:
    """Log losses that a law predicts for points, float64 [n]."""
    if points.unique_tokens is None or not isinstance(law, DataConstrainedLaw):
        return np.log(law.loss(points.parameters, points.tokens))
    unique = points.unique_tokens
    limited = np.isfinite(unique)
    of = points.parameters, points.tokens
    constrained = law.constrained_loss(*of, np.where(limited, unique, 1.0))
    return np.log(np.where(limited, constrained, law.loss(*of)))


def check_determined(name: str, points: Points) -> None:
    """Raises a UserError for points that do not determine a law; losses are not read.

    Args:
      name: one of `FORMS`.
      points: runs.
    """
    kind = FORMS[name]
    if len(points) < kind.parameters:
        raise UserError(
            f"--law {name}: {len(points)} points; expected at least "
            f"{kind.parameters}, as many as the law has parameters."
        )
    for quantity, least in kind.distinct.items():
        values = getattr(points, quantity)
        if values is None:
            raise UserError(
                f"--law {name}: the points have no {quantity}; expected a column "
                f"{quantity!r}, or its name by --{quantity}."
            )
        found = len(np.unique(np.round(np.log(values), 6)))
        if found < least:
            raise UserError(
                f"--law {name}: the points have {found} different {quantity}; expected "
                f"at least {least}."
            )
    if name == "muennighoff":
        repeated = np.count_nonzero(points.tokens > points.unique_tokens * 1.0001)
        if repeated < 2:
            raise UserError(
                f"--law {name}: {repeated} points repeat their data (tokens above "
                "unique_tokens); expected at least 2."
            )
