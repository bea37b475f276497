"""Labels as text, scored by their likelihoods in an evaluation step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.data.text.text_data import Data
from fmjax.errors import UserError
from fmjax.inference.label_texts import label_tokens, padded_labels
from fmjax.models.label_likelihoods import label_likelihoods
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.sharding.xla_options import Changes, compiled_with, xla_options
from fmjax.training.experiment import Experiment
from fmjax.training.labels import writes_labels
from fmjax.training.step import evaluation_sums

# Ratios of a step of `written_step` that are reported beside the scores.
WRITTEN_METRICS = ("exact_match", "token_accuracy")


def scores_written(experiment: Experiment) -> bool:
    """Whether the labels of the data are text of which each has a row of its own."""
    data = experiment.data
    whole = isinstance(data, Data) and data.rows != "packed"
    return whole and writes_labels(experiment)


def check_scores_written(experiment: Experiment) -> None:
    """Raises a UserError if labels as text cannot be told apart in the rows."""
    if not scores_written(experiment):
        raise UserError(
            "experiment.evaluations has @label_scores(), and data.rows = "
            f"{experiment.data.rows!r}; expected 'documents', of which each row has "
            "one label."
        )
    label_tokens(experiment, experiment.data.tokenizer())


def written_step(experiment: Experiment, mesh: Mesh) -> Callable:
    """An evaluation step that also returns the likeliest label of each text.

    Args:
      experiment: with labels, see `scores_written`.
      mesh: of the variables.

    Returns:
      (variables, batch) → the sums of `make_eval_step`, whose accuracy of tokens is
      "token_accuracy", with "exact_match", the share of texts whose label greedy
      decoding writes; and (predictions, labels, which of them count), whole on every
      device. The label of a row that has none of the classes as its targets is -1.
    """
    tokens, lengths = label_tokens(experiment, experiment.data.tokenizer())
    labels = tuple(tuple(row[:n].tolist()) for row, n in zip(tokens, lengths))
    return _step(experiment.objective, mesh, experiment.train.xla_options, labels)


@functools.lru_cache(maxsize=1)
def _step(
    objective: Seq2SeqLM,
    mesh: Mesh,
    changes: Changes,
    labels: tuple[tuple[int, ...], ...],
) -> Callable:
    options = xla_options(mesh.devices.flat[0], changes)
    tokens, lengths = padded_labels(labels)

    def step(variables, batch):
        with compiled_with(options):
            out = objective.loss(variables, batch, None)
            mask = batch["encoder_segment_ids"] > 0
            # Rows of weight 0 attend to something, so that nothing is NaN.
            text = TextInputs(
                batch["encoder_tokens"],
                positions=batch["encoder_positions"],
                padding_mask=mask.at[:, 0].set(True),
            )
            found = label_likelihoods(objective.model, variables, text, tokens, lengths)
        shares, ratios, count = evaluation_sums(objective, batch, out)
        is_label = _same_tokens(batch, tokens, lengths)
        counts = batch["weights"].max(-1) > 0
        labels = jnp.where(is_label.any(-1), is_label.argmax(-1), -1)
        right = (is_label & found.greedy).any(-1) & counts
        ratios["token_accuracy"] = ratios.pop("accuracy")
        ratios["exact_match"] = (right.sum(), counts.sum())
        predicted = found.log_likelihoods.argmax(-1)
        return shares, ratios, count, (predicted, labels, counts)

    # Replicated, so that every process has all rows.
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, out_shardings=everywhere, compiler_options=options)


def _same_tokens(batch, tokens, lengths) -> jax.Array:
    """Which label the targets of a row are, bool [B, K]."""
    targets = jnp.where(batch["weights"] > 0, batch["targets"], -1)
    T = targets.shape[1]
    own = jnp.pad(tokens, ((0, 0), (0, T - tokens.shape[1])))
    own = jnp.where(jnp.arange(T) < lengths[:, None], own, -1)
    return (targets[:, None] == own).all(-1)
