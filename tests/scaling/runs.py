"""Results of runs that a law gives, with or without noise."""

import numpy as np

from fmjax.scaling.points import Points

SIZES = np.geomspace(1e7, 1e10, 6)
TOKENS = np.geomspace(1e9, 1e12, 5)


def runs_of(law, sizes=SIZES, tokens=TOKENS, noise=0.0, seed=0) -> Points:
    """Every size with every number of tokens.

    Args:
      law: with a loss of N and D.
      sizes: N.
      tokens: D.
      noise: standard deviation of the log loss.
      seed: of the noise.
    """
    N, D = (grid.ravel() for grid in np.meshgrid(sizes, tokens))
    errors = np.random.default_rng(seed).normal(0, 1, N.shape)
    return Points(N, D, law.loss(N, D) * np.exp(noise * errors))


def on_budgets(law, budgets, per_budget=9, spread=4.0) -> Points:
    """Sizes around the best of each budget, by a factor of `spread` on either side."""
    ratios = np.geomspace(1 / spread, spread, per_budget)
    N = np.concatenate([law.optimum(C).parameters * ratios for C in budgets])
    C = np.repeat(budgets, per_budget)
    return Points(N, C / 6 / N, law.loss(N, C / 6 / N))


def write_csv(path, **columns):
    """A CSV file of columns."""
    lines = [",".join(columns)]
    lines += [",".join(map(str, row)) for row in zip(*columns.values())]
    path.write_text("\n".join(lines) + "\n")
    return path
