"""Predicting the labels of a validation split: `fmjax eval`, and in training."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import UserError
from fmjax.evaluation.label_scores import (
    ClassCounts,
    Scores,
    confusion_table,
    scores_of_numbers,
    scores_of_sets,
)
from fmjax.evaluation.written_labels import (
    WRITTEN_METRICS,
    check_scores_written,
    written_step,
)
from fmjax.objectives.class_loss import NamesClasses
from fmjax.objectives.label_objective import LabelObjective
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.objectives.text_classification import TextClassification
from fmjax.sharding.mesh import batch_sharding, global_batch, local_rows
from fmjax.sharding.rules import LogicalRules
from fmjax.sharding.xla_options import Changes, compiled_with, xla_options
from fmjax.training.evaluate import evaluate
from fmjax.training.experiment import EvaluationPoint, Experiment, Found
from fmjax.training.labels import writes_labels
from fmjax.training.step import evaluation_sums

# Of more classes, a table would not fit on a page.
_SHOWN_CLASSES = 20


class MeasuredLabels(NamedTuple):
    """What predictions of labels are worth.

    Attributes:
      scores: by name, see `fmjax.evaluation.label_scores`.
      confusion: a table in text of labels and predictions; empty for several labels of
        a text, for numbers, and for more than 20 classes.
    """

    scores: Scores
    confusion: str


@configurable("label_scores")
@dataclasses.dataclass(frozen=True)
class LabelScores:
    """Scores of predicted labels over the whole validation split.

    For @text_classification() and @token_classification(): accuracy, F1, Matthews'
    correlation and a confusion matrix; for numbers Pearson's and Spearman's
    correlation. For labels as text, which @seq2seq_lm() writes, the predicted class is
    that whose text has the highest likelihood; "exact_match" is the share of texts
    whose label greedy decoding writes, and "token_accuracy" the accuracy of the loss.

    Attributes:
      every_validation: whether after each validation, or after the last step alone.
    """

    every_validation: bool = runtime_field(False)

    def check(self, experiment: Experiment) -> None:
        """Raises a UserError if the objective does not predict labels."""
        if writes_labels(experiment):
            check_scores_written(experiment)
        elif not isinstance(experiment.objective, LabelObjective):
            raise UserError(
                "experiment.evaluations has @label_scores(), but "
                f"@{experiment.objective.gin_name}() does not predict labels; expected "
                "@text_classification() or @token_classification(), or @seq2seq_lm() "
                "with record_pairs.labels = True."
            )

    def __call__(self, experiment: Experiment, at: EvaluationPoint) -> Found:
        """The scores by name, and "confusion", a table in text, for few classes."""
        if not (at.last or self.every_validation) or not at.metrics:
            return {}
        mesh, rules = experiment.mesh.build(), experiment.mesh.all_rules
        values, found = evaluate_labels(experiment, at.variables, mesh, rules)
        # The name is printed before the first line.
        is_shown = at.last and found.confusion
        shown = {"confusion": f"\n{found.confusion}"} if is_shown else {}
        written = {n: values[n] for n in WRITTEN_METRICS if n in values}
        return {**found.scores, **written, **shown}


def evaluate_labels(
    experiment: Experiment,
    variables: Mapping[str, Any],
    mesh: Mesh,
    rules: LogicalRules,
) -> tuple[dict[str, float], MeasuredLabels]:
    """Loss and predictions of the whole validation split, on the mesh of the variables.

    Every process gets all predictions.

    Args:
      experiment: with a `LabelObjective`, or labels as text, and data with a validation
        split.
      variables: {"params": …}.
      mesh: of the variables.
      rules: logical to mesh axes.

    Returns:
      The result of `fmjax.training.evaluate.evaluate`, and the scores.
    """
    objective, run = experiment.objective, experiment.train
    size = run.eval_batch_size or run.batch_size
    sharding = batch_sharding(mesh, rules)
    if writes_labels(experiment):
        step = written_step(experiment, mesh)
    else:
        step = _predicting_step(objective, mesh, run.xla_options)
    pieces = []

    def eval_step(variables, batch):
        *sums, found = step(variables, batch)
        predicted, labels, counts = jax.device_get(found)
        pieces.append((predicted[counts], labels[counts]))
        return sums

    values = evaluate(
        eval_step,
        variables,
        experiment.data.eval_batches(size, local_rows(sharding, size)),
        lambda batch: global_batch(batch, sharding, size),
        objective.unit,
    )
    predicted, labels = map(np.concatenate, zip(*pieces))
    if writes_labels(experiment) and (labels < 0).any():
        raise UserError(
            f"{(labels < 0).sum():,} of {len(labels):,} targets of experiment.data are "
            f"none of the classes {experiment.labels!r:.200}."
        )
    return values, _scored(experiment, predicted, labels)


def _scored(experiment: Experiment, predicted, labels) -> MeasuredLabels:
    objective = experiment.objective
    if np.issubdtype(predicted.dtype, np.floating):
        return MeasuredLabels(scores_of_numbers(predicted, labels), "")
    if predicted.ndim == 2:
        return MeasuredLabels(scores_of_sets(predicted, labels), "")
    names, table = experiment.labels, ""
    classes = len(names) if writes_labels(experiment) else objective.classes
    counts = ClassCounts.of(predicted, labels, classes)
    if len(names) == classes <= _SHOWN_CLASSES:
        table = confusion_table(predicted, labels, names)
    return MeasuredLabels(counts.scores(), table)


def check_labels(experiment: Experiment) -> None:
    """Raises a UserError if the data has other classes than the run was trained with.

    Classes follow from the labels of the training files unless they are bound, so other
    files may have others, or the same in another order.
    """
    data, labels = experiment.data, experiment.labels
    predicts = isinstance(experiment.objective, LabelObjective | Seq2SeqLM)
    if not predicts or not labels:
        return
    if isinstance(data, NamesClasses) and (names := data.class_names()) != labels:
        raise UserError(
            f"experiment.data has the classes {names!r:.200}, and the run "
            f"{labels!r:.200}; expected the same. Bind the classes of the source, such "
            f"as labelled_records.classes={labels!r:.200}, or record_pairs.classes."
        )


@functools.lru_cache(maxsize=1)
def _predicting_step(
    objective: LabelObjective, mesh: Mesh, options: Changes
) -> Callable:
    """An evaluation step that also returns predictions.

    (variables, batch) → the sums of `make_eval_step`, and (predictions, labels, which
    of them count), all of it whole on every device.
    """
    output = "softmax"
    if isinstance(objective, TextClassification):
        output = objective.output
    compiler_options = xla_options(mesh.devices.flat[0], options)

    def predicted(logits, batch):
        labels, counts = batch["labels"], batch["weights"] > 0
        if output == "regression":
            return logits[:, 0], labels, counts
        if output == "sigmoid":
            targets = labels
            if labels.ndim == 1:
                targets = jax.nn.one_hot(labels, objective.classes)
            return logits > 0, targets > 0.5, counts
        if labels.ndim == 2:  # of tokens
            counts = (labels >= 0) & counts[:, None]
        return logits.argmax(-1), labels, counts

    def step(variables, batch):
        with compiled_with(compiler_options):
            logits = objective.predict(variables, batch)
            out = objective.loss_of(logits, batch)
        sums = evaluation_sums(objective, batch, out)
        return *sums, predicted(logits, batch)

    # Replicated, so that every process has all rows.
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, out_shardings=everywhere, compiler_options=compiler_options)
