"""The best size of each budget: isoFLOP parabolas, and the envelope of curves.

Approaches 2 and 1 of Hoffmann et al. 2022. Both end in power laws of the budget, by
least squares.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import optimize
from scipy.cluster import hierarchy

from fmjax.errors import UserError
from fmjax.scaling.fit import Fit
from fmjax.scaling.laws import Frontier
from fmjax.scaling.points import Points

_SAME_BUDGET = 1.2  # largest ratio of the FLOPs of a budget's runs
_NEAR = 1.5  # and to a budget that is given
_BUDGETS = 1500  # of the envelope, ibid., section 3.1
_TRIES = 100
_EXPONENTS = (0.005, 2.0)  # of the loss, between which it is looked for


@dataclasses.dataclass(frozen=True)
class Best:
    """The best models of some budgets.

    Attributes:
      flops: C, float64 [n].
      parameters: N, float64 [n].
      loss: nats a token, float64 [n].
    """

    flops: np.ndarray
    parameters: np.ndarray
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class Parabola:
    """L = curvature (log N − log N*)² + loss, of the runs of one budget.

    Attributes:
      flops: of the budget, the geometric mean.
      points: its runs.
      curvature: of the loss over log N; not positive if there is no lowest point.
      parameters: N*.
      loss: at N*.
    """

    flops: float
    points: Points
    curvature: float
    parameters: float
    loss: float

    @property
    def is_inside(self) -> bool:
        """Whether there is a lowest point between the sizes of the runs."""
        N = self.points.parameters
        between = bool(N.min() <= self.parameters <= N.max())
        return between and self.curvature > 0 and self.loss > 0


def parabolas(points: Points, budgets: Sequence[float] = ()) -> list[Parabola]:
    """A parabola for each budget of which there are runs of at least three sizes.

    Args:
      points: runs.
      budgets: FLOPs. A run is of the nearest one, if they differ by a factor of 1.5 at
        most; other runs are left out. Without budgets, runs whose FLOPs are within 20%
        of each other are of one.
    """
    if len(points) < 3:
        return []
    places = np.log(points.flops)
    if len(budgets):
        centers = np.log(np.unique(budgets))
        far = np.abs(places[:, None] - centers)
        labels = np.where(far.min(1) <= np.log(_NEAR), far.argmin(1), -1)
    else:
        near = hierarchy.linkage(places[:, None], method="complete")
        labels = hierarchy.fcluster(near, np.log(_SAME_BUDGET), criterion="distance")
    groups = [points.take(labels == label) for label in np.unique(labels[labels >= 0])]
    found = [_parabola(group) for group in groups if _sizes(group) >= 3]
    return sorted(found, key=lambda parabola: parabola.flops)


def best_of_parabolas(found: list[Parabola]) -> Best:
    """The lowest points of the parabolas that have one between their sizes.

    Raises:
      UserError: there are fewer than two.
    """
    kept = [parabola for parabola in found if parabola.is_inside]
    if len(kept) < 2:
        raise UserError(
            f"--law isoflop: {len(found)} budgets have 3 sizes or more, and "
            f"{len(kept)} of them their lowest loss between these; expected at least 2."
        )
    values = [(p.flops, p.parameters, p.loss) for p in kept]
    return Best(*np.array(values).T)


def envelope(points: Points) -> Best:
    """The run of the lowest loss at each of 1500 budgets.

    A curve is interpolated over log FLOPs. Budgets at which the smallest or the largest
    run that reaches them is the best are left out, since a smaller or larger one may
    have been better.

    Args:
      points: moments of runs, with the name of the run.

    Raises:
      UserError: there are fewer than three runs, or no budget has its best between
        others.
    """
    if points.run is None:
        raise UserError(
            "--law envelope: the points have no runs; expected a column 'run', or its "
            "name by --run."
        )
    names = np.unique(points.run)
    if len(names) < 3:
        raise UserError(
            f"--law envelope: {len(names)} runs; expected at least 3, as the best must "
            "be between others."
        )
    curves = [points.take(points.run == name) for name in names]
    for name, curve in zip(names, curves):
        if np.ptp(np.log(curve.parameters)) > 1e-6:
            raise UserError(
                f"--law envelope: run {name} has several parameters; expected one size."
            )
    curves.sort(key=lambda curve: curve.parameters[0])
    budgets = np.geomspace(points.flops.min(), points.flops.max(), _BUDGETS)
    losses = np.array([_interpolated(curve, budgets) for curve in curves])
    sizes = np.array([curve.parameters[0] for curve in curves])
    there = np.isfinite(losses)
    lowest = np.where(there, losses, np.inf).argmin(axis=0)
    best = sizes[lowest]
    inside = (np.where(there, sizes[:, None], np.inf).min(axis=0) < best) & (
        best < np.where(there, sizes[:, None], -np.inf).max(axis=0)
    )
    if not inside.any() or len(np.unique(best[inside])) < 2:
        raise UserError(
            "--law envelope: at no two sizes is the best run of a budget between "
            "others; expected runs of more sizes, or longer ones."
        )
    loss = losses[lowest, np.arange(_BUDGETS)]
    return Best(budgets[inside], best[inside], loss[inside])


def frontier(best: Best) -> Frontier:
    """N = k C^a and L = E + (C_c / C)^γ by least squares of log N and of L.

    E is 0 where fewer than three budgets, or a negative E, would be fitted.
    """
    C = np.log(best.flops)
    a, log_k = np.polyfit(C, np.log(best.parameters), 1)
    E, C_c, gamma = _loss_of_budget(C, best.loss)
    return Frontier(float(np.exp(log_k)), float(a), E, C_c, gamma)


def fit_isoflop(
    points: Points,
    bootstrap: int = 0,
    seed: int = 0,
    budgets: Sequence[float] = (),
) -> Fit:
    """The frontier of isoFLOP parabolas (ibid., approach 2).

    Args:
      points: runs of some budgets.
      bootstrap: how many times the runs of each budget are resampled.
      seed: of the resampling.
      budgets: FLOPs, as in `parabolas`.

    Raises:
      UserError: as in `best_of_parabolas`.
    """
    found = parabolas(points, budgets)
    law = frontier(best_of_parabolas(found))
    used = sum(len(parabola.points) for parabola in found if parabola.is_inside)
    random = np.random.default_rng(seed)
    samples = tuple(_resampled_parabolas(found, random) for _ in range(bootstrap))
    return Fit(law, used, "isoflop", samples, budgets=(*budgets,))


def fit_envelope(points: Points, bootstrap: int = 0, seed: int = 0) -> Fit:
    """The frontier of the envelope of training curves (ibid., approach 1).

    Args:
      points: moments of runs, with the name of the run.
      bootstrap: how many times runs are resampled.
      seed: of the resampling.

    Raises:
      UserError: as in `envelope`.
    """
    law = frontier(envelope(points))
    random = np.random.default_rng(seed)
    samples = tuple(_resampled_curves(points, random) for _ in range(bootstrap))
    return Fit(law, len(points), "envelope", samples)


def _loss_of_budget(C: np.ndarray, loss: np.ndarray) -> tuple[float, float, float]:
    """E, C_c and γ for log budgets and losses [n]."""
    slope, level = np.polyfit(C, np.log(loss), 1)
    power = 0.0, float(np.exp(level / -slope)), float(-slope)
    if len(np.unique(C)) < 3:
        return power
    middle = C.mean()

    def line(log_gamma):
        """E and coefficient at the middle for an exponent, and the squared errors."""
        x = np.exp(-np.exp(log_gamma) * (C - middle))
        columns = np.stack([np.ones_like(x), x], axis=1)
        found = np.linalg.lstsq(columns, loss)[0]
        return found, float(np.sum((columns @ found - loss) ** 2))

    grid = np.linspace(*np.log(_EXPONENTS), 40)
    place = int(np.argmin([line(g)[1] for g in grid]))
    around = grid[max(place - 1, 0)], grid[min(place + 1, len(grid) - 1)]
    log_gamma = optimize.minimize_scalar(
        lambda g: line(g)[1], bounds=around, method="bounded", options={"xatol": 1e-10}
    ).x
    (E, coefficient), gamma = line(log_gamma)[0], np.exp(log_gamma)
    if not (E > 0 and coefficient > 0):
        return power
    return float(E), float(np.exp(middle + np.log(coefficient) / gamma)), float(gamma)


def _parabola(points: Points) -> Parabola:
    flops = float(np.exp(np.mean(np.log(points.flops))))
    x = np.log(points.parameters)
    # Around the mean, since squares of log N nearly cancel.
    curvature, slope, level = np.polyfit(x - x.mean(), points.loss, 2)
    lowest = -slope / (2 * curvature) if curvature else 0.0
    return Parabola(
        flops,
        points,
        float(curvature),
        float(np.exp(np.clip(lowest + x.mean(), -700, 700))),
        float(level - slope**2 / (4 * curvature)) if curvature else float(level),
    )


def _sizes(points: Points) -> int:
    return len(np.unique(np.round(np.log(points.parameters), 6)))


def _resampled_parabolas(found, random) -> Frontier:
    def resampled(points):
        while True:
            drawn = points.take(random.integers(len(points), size=len(points)))
            if _sizes(drawn) >= 3:
                return drawn

    return _retried(
        lambda: best_of_parabolas([_parabola(resampled(p.points)) for p in found]),
        "isoflop",
    )


def _resampled_curves(points: Points, random) -> Frontier:
    names = np.unique(points.run)

    def drawn():
        chosen = np.unique(random.choice(names, size=len(names)))
        return envelope(points.take(np.isin(points.run, chosen)))

    return _retried(drawn, "envelope")


def _retried(best, law: str) -> Frontier:
    for _ in range(_TRIES):
        try:
            return frontier(best())
        except UserError:
            continue
    raise UserError(
        f"--law {law}: too few points for a bootstrap; expected more, or --bootstrap 0."
    )


def _interpolated(curve: Points, budgets: np.ndarray) -> np.ndarray:
    """Loss at budgets [m]; NaN where the curve has not begun or has ended."""
    order = np.argsort(curve.flops)
    C, L = np.log(curve.flops[order]), curve.loss[order]
    return np.interp(np.log(budgets), C, L, left=np.nan, right=np.nan)
