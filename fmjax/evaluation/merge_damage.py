"""What rounding has done to merged weights: outputs before and after."""

import dataclasses
import os
from collections.abc import Iterator, Mapping

import numpy as np

from fmjax.errors import UserError
from fmjax.inference.load import load
from fmjax.inference.run import Run
from fmjax.models.call_arguments import array_names
from fmjax.training.experiment import Experiment

# Of random rows, where the run has no data.
_RANDOM_LENGTH = 64
_AT_MOST_ROWS = 32


@dataclasses.dataclass(frozen=True)
class MergeDamage:
    """How far merged weights compute something else than the adapters.

    Attributes:
      kl: mean Kullback-Leibler divergence of the merged run's distributions from those
        of the run of adapters, Σ p log(p / q), in nats.
      perplexity: of the targets, with adapters and merged; None without targets.
      count: of distributions.
      rows: which rows were read, in words.
    """

    kl: float
    perplexity: tuple[float, float] | None
    count: int
    rows: str

    def describe(self) -> str:
        """A line for the user."""
        text = f"merged against adapters, on {self.count:,} predictions of {self.rows}"
        text += f": KL {self.kl:.2e} nats"
        if self.perplexity is not None:
            text += ", perplexity {:.5g} before and {:.5g} after".format(
                *self.perplexity
            )
        return text


def merge_damage(
    run_dir: str | os.PathLike,
    merged_dir: str | os.PathLike,
    *,
    step: int | None = None,
    trust: bool = False,
) -> MergeDamage | None:
    """Compares a run of adapters with the run of whole weights made of it.

    Args:
      run_dir: of the adapters.
      merged_dir: from `fmjax.run.merge.merge_runs`.
      step: of the adapters' checkpoint; None for the newest.
      trust: whether the runs' configs may import Python modules.

    Returns:
      The damage; None if the model has no logits of single rows.
    """
    before = load(run_dir, step=step, trust=trust)
    after = load(merged_dir, trust=trust)
    kl, losses, count, counted = 0.0, np.zeros(2), 0, 0.0
    batches, rows = _rows(before)
    for batch in batches:
        names = array_names(before.model).keys() & batch.keys()
        inputs = {name: batch[name] for name in names}
        found = [_log_probabilities(run, inputs) for run in (before, after)]
        if found[0] is None or found[0].shape[0] != 1:
            return None
        p, q = found
        weights = batch.get("weights")
        if weights is None or weights.shape != p.shape[:-1]:
            weights = np.ones(p.shape[:-1])
        kl += ((np.exp(p) * (p - q)).sum(-1) * (weights > 0)).sum()
        count += int((weights > 0).sum())
        targets = batch.get("targets")
        if targets is not None and targets.shape == p.shape[:-1]:
            each = [
                np.take_along_axis(x, targets[..., None], -1)[..., 0] for x in found
            ]
            losses -= [(x * weights).sum() for x in each]
            counted += weights.sum()
    if not count:
        return None
    perplexity = tuple(np.exp(losses / counted).tolist()) if counted else None
    return MergeDamage(kl / count, perplexity, count, rows)


def _log_probabilities(run: Run, inputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Float64 [1, …, classes]; None if the model gives no logits."""
    logits = run(**inputs).get("logits")
    if logits is None:
        return None
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _rows(run: Run) -> tuple[Iterator[dict[str, np.ndarray]], str]:
    """Batches of one row, and what they are."""
    experiment = run.config
    if experiment.data is not None:
        try:
            return iter(_validation_rows(experiment)), "the validation split"
        except UserError:
            pass  # Files may be elsewhere now; the weights are compared all the same.
    vocab_size = experiment.objective.vocab_size
    if vocab_size is None:
        return iter(()), "nothing"
    rng = np.random.default_rng(0)
    shape = (_AT_MOST_ROWS, 1, _RANDOM_LENGTH)
    limit = getattr(run.model, "max_length", None) or _RANDOM_LENGTH
    tokens = rng.integers(vocab_size, size=shape)[..., :limit]
    needed = [name for name in array_names(run.model) if name.endswith("tokens")]
    return ({name: row for name in needed} for row in tokens), "random tokens"


def _validation_rows(experiment: Experiment) -> list[dict[str, np.ndarray]]:
    data = experiment.data
    data.prepare()
    batches = data.eval_batches(1, range(1), max_batches=_AT_MOST_ROWS)
    return [{name: np.asarray(x) for name, x in batch.items()} for batch in batches]
