"""What rounding has done to merged weights: outputs before and after."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from scipy.special import log_expit, log_softmax

from fmjax.errors import UserError
from fmjax.inference.load import load
from fmjax.inference.run import Run
from fmjax.models.call_arguments import array_names
from fmjax.objectives.label_objective import LabelObjective
from fmjax.run.best_step import Step
from fmjax.training.experiment import Experiment

# Of random rows, where the run has no data.
_RANDOM_LENGTH = 64
_AT_MOST_ROWS = 32

# A batch of one row → logits, float64 [1, …, classes]; None if there are none.
_Predict = Callable[[Mapping[str, np.ndarray]], np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class MergeDamage:
    """How far merged weights compute something else than the adapters.

    Distributions are those of tokens or of classes, as the objective predicts them.

    Attributes:
      kl: mean Kullback-Leibler divergence of the merged run's distributions from those
        of the run of adapters, Σ p log(p / q), in nats; with output = 'sigmoid' the
        sum over classes; None where numbers are predicted.
      squared: mean squared difference of predicted numbers; None of distributions.
      perplexity: of the targets, with adapters and merged; None without targets.
      count: of predictions.
      rows: which rows were read, in words.
    """

    kl: float | None
    squared: float | None
    perplexity: tuple[float, float] | None
    count: int
    rows: str

    def describe(self) -> str:
        """A line for the user."""
        text = f"merged against adapters, on {self.count:,} predictions of {self.rows}"
        if self.kl is not None:
            text += f": KL {self.kl:.2e} nats"
        else:
            text += f": mean squared difference {self.squared:.2e}"
        if self.perplexity is not None:
            text += ", perplexity {:.5g} before and {:.5g} after".format(
                *self.perplexity
            )
        return text


def describe(damage: MergeDamage | None) -> str:
    """A line for the user, also where nothing could be compared."""
    if damage is not None:
        return damage.describe()
    return (
        "merged weights were not compared with the adapters: expected a model that "
        "predicts tokens or classes, and of images a validation split"
    )


def merge_damage(
    run_dir: str | os.PathLike,
    merged_dir: str | os.PathLike,
    *,
    step: Step = None,
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
    return compared(before, load(merged_dir, trust=trust))


def export_damage(
    run_dir: str | os.PathLike,
    dtype: str,
    *,
    step: Step = None,
    trust: bool = False,
) -> MergeDamage | None:
    """Compares a run of adapters with its weights as an export merges and rounds them.

    Args:
      run_dir: of the adapters.
      dtype: of the exported weights.
      step: of the adapters' checkpoint; None for the newest.
      trust: whether the run's config may import Python modules.

    Returns:
      As `merge_damage`.
    """
    before = load(run_dir, step=step, trust=trust)
    return compared(before, before.merged(dtype))


def compared(before: Run, after: Run) -> MergeDamage | None:
    """Compares the predictions of two runs, on the validation split of the first.

    Args:
      before: of adapters.
      after: of whole weights.

    Returns:
      As `merge_damage`.
    """
    output = getattr(before.config.objective, "output", "softmax")
    total, losses, count, counted = 0.0, np.zeros(2), 0, 0.0
    predict = [_predictor(run) for run in (before, after)]
    batches, rows = _rows(before)
    for batch in batches:
        p, q = (each(batch) for each in predict)
        if p is None or q is None or p.shape[0] != 1:
            return None
        weights = _weights(batch, p.shape[:-1])
        total += (_differences(output, p, q) * (weights > 0)).sum()
        count += int((weights > 0).sum())
        targets = batch.get("targets")
        if targets is not None and targets.shape == p.shape[:-1]:
            each = [
                np.take_along_axis(log_softmax(x, -1), targets[..., None], -1)[..., 0]
                for x in (p, q)
            ]
            losses -= [(x * weights).sum() for x in each]
            counted += weights.sum()
    if not count:
        return None
    perplexity = tuple(np.exp(losses / counted).tolist()) if counted else None
    is_number, mean = output == "regression", total / count
    found = (None, mean) if is_number else (mean, None)
    return MergeDamage(*found, perplexity, count, rows)


def _predictor(run: Run) -> _Predict:
    objective, names = run.config.objective, array_names(run.model).keys()
    variables = {"params": run.params, **run.extra}

    def of_call(batch):
        logits = run(**{name: batch[name] for name in names & batch.keys()}).get(
            "logits"
        )
        return None if logits is None else np.asarray(logits, np.float64)

    if not isinstance(objective, LabelObjective):
        return of_call
    predicted = jax.jit(objective.predict)

    def of_labels(batch):
        with run.on_mesh():
            return np.asarray(predicted(variables, batch), np.float64)

    return of_labels


def _weights(batch: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The weights of predictions of this shape, 0 for tokens without a label."""
    weights, labels = batch.get("weights"), batch.get("labels")
    if weights is None or weights.shape != shape[: weights.ndim]:
        weights = np.ones(shape)
    weights = weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim))
    weights = np.broadcast_to(weights, shape)
    if labels is not None and labels.shape == shape and labels.dtype.kind == "i":
        weights = weights * (labels >= 0)
    return weights


def _differences(output: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) of each prediction, or the squared difference, from logits."""
    if output == "regression":
        return np.square(before - after).sum(-1)
    if output == "softmax":
        pairs = [(log_softmax(before, -1), log_softmax(after, -1))]
    else:
        pairs = [(log_expit(s * before), log_expit(s * after)) for s in (1, -1)]
    return sum((np.exp(p) * (p - q)).sum(-1) for p, q in pairs)


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
    needed = {name for name in array_names(run.model) if name.endswith("tokens")}
    if isinstance(experiment.objective, LabelObjective):
        needed = {"tokens"}  # What an encoder-decoder reads follows from them.
    return ({name: row for name in needed} for row in tokens), "random tokens"


def _validation_rows(experiment: Experiment) -> list[dict[str, np.ndarray]]:
    data = experiment.data
    data.prepare()
    batches = data.eval_batches(1, range(1), max_batches=_AT_MOST_ROWS)
    return [{name: np.asarray(x) for name, x in batch.items()} for batch in batches]
