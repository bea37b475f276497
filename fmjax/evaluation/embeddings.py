"""What vectors of texts are worth: `fmjax eval`, and in training."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax.configurable import configurable, runtime_field
from fmjax.data.sources.labelled_records import LabelledRecords
from fmjax.errors import UserError
from fmjax.evaluation.current_run import current_run
from fmjax.evaluation.embedding_scores import alignment, recall_at_1, uniformity
from fmjax.evaluation.label_scores import scores_of_numbers
from fmjax.inference.run import Run
from fmjax.objectives.text_contrast import TextContrast
from fmjax.sharding.mesh import batch_sharding, global_batch, local_rows
from fmjax.sharding.rules import LogicalRules
from fmjax.sharding.xla_options import Changes, compiled_with, xla_options
from fmjax.training.experiment import EvaluationPoint, Experiment, Found


@configurable("embedding_scores")
@dataclasses.dataclass(frozen=True)
class EmbeddingScores:
    """Measures of vectors of texts over the whole validation split.

    For @text_contrast(): alignment and uniformity (Wang & Isola 2020), and recall at
    rank 1 of targets among those of the whole split.

    Attributes:
      similarity: pairs of texts and how similar people find them, as of semantic
        textual similarity, @labelled_records() with second_text and numbers; adds
        Spearman's correlation with the cosines. None for none.
      every_validation: whether after each validation, or after the last step alone.
    """

    similarity: LabelledRecords | None = runtime_field(None)
    every_validation: bool = runtime_field(False)

    def check(self, experiment: Experiment) -> None:
        """Raises a UserError for other objectives, or texts without numbers."""
        if not isinstance(experiment.objective, TextContrast):
            raise UserError(
                "experiment.evaluations has @embedding_scores(), but "
                f"@{experiment.objective.gin_name}() does not compare texts; expected "
                "@text_contrast()."
            )
        source = self.similarity
        if source is None:
            return
        if jax.process_count() > 1:
            raise UserError(
                "embedding_scores.similarity needs a run of one process; this one has "
                f"{jax.process_count()}. Expected None."
            )
        if source.second_text is None or not source.numbers:
            raise UserError(
                "embedding_scores.similarity: labelled_records.second_text = "
                f"{source.second_text!r}, labelled_records.numbers = {source.numbers}; "
                "expected a field of second texts, and True."
            )

    def __call__(self, experiment: Experiment, at: EvaluationPoint) -> Found:
        """The measures by name."""
        if not (at.last or self.every_validation):
            return {}
        mesh, rules = experiment.mesh.build(), experiment.mesh.all_rules
        found: Found = {}
        if at.metrics:
            found |= measure_embeddings(experiment, at.variables, mesh, rules)
        if self.similarity is not None:
            run = current_run(experiment, at.variables, at.step)
            found |= similarity_scores(run, self.similarity)
        return found


def measure_embeddings(
    experiment: Experiment,
    variables: Mapping[str, Any],
    mesh: Mesh,
    rules: LogicalRules,
) -> dict[str, float]:
    """Embeds the whole validation split, on the mesh of the variables.

    Every process gets all vectors.

    Args:
      experiment: with @text_contrast(), and data with a validation split.
      variables: {"params": …}.
      mesh: of the variables.
      rules: logical to mesh axes.

    Returns:
      "uniformity" of the inputs, and for pairs "alignment" and "recall@1".
    """
    objective, run = experiment.objective, experiment.train
    size = run.eval_batch_size or run.batch_size
    sharding = batch_sharding(mesh, rules)
    embed = _embedder(objective, mesh, run.xla_options)
    pieces = []
    for batch in experiment.data.eval_batches(size, local_rows(sharding, size)):
        placed = global_batch(batch, sharding, size)
        vectors, tokens, counts = jax.device_get(embed(variables, placed))
        pieces.append((vectors[counts], tokens[counts]))
    vectors, tokens = (np.concatenate(arrays) for arrays in zip(*pieces))
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    found = {"uniformity": uniformity(unit[:, 0])} if len(unit) > 1 else {}
    if tokens.shape[1] > 1:
        found["alignment"] = alignment(unit[:, 0], unit[:, 1])
        _, texts = np.unique(tokens[:, 1], axis=0, return_inverse=True)
        found["recall@1"] = recall_at_1(vectors[:, 0], vectors[:, 1], texts.reshape(-1))
    return found


def similarity_scores(run: Run, source: LabelledRecords) -> dict[str, float]:
    """Semantic textual similarity: the cosines of pairs against people's judgement.

    Args:
      run: that embeds the texts, which are truncated to what it reads.
      source: pairs with a number each; its validation split, or all if it has none.

    Returns:
      "similarity_spearman", the correlation of the ranks.
    """
    split = source.splits[-1]
    pairs, numbers = [], []
    for _, first, second, labels, fault in source.labelled(split):
        if not fault and first.strip() and second.strip():
            pairs.append(tuple(x.decode(errors="replace") for x in (first, second)))
            numbers.append(float(labels[0]))
    if not pairs:
        raise UserError(f"embedding_scores.similarity: no pairs in {source.files}.")
    first, second = (
        run.embed(list(texts), normalize=True, truncate=True) for texts in zip(*pairs)
    )
    cosines = (first.astype(np.float64) * second).sum(1)
    found = scores_of_numbers(cosines, np.array(numbers))
    return {"similarity_spearman": found["spearman"]}


@functools.lru_cache(maxsize=1)
def _embedder(objective: TextContrast, mesh: Mesh, options: Changes) -> Callable:
    """(variables, batch) → vectors, tokens, and which rows count, everywhere."""
    compiler_options = xla_options(mesh.devices.flat[0], options)

    def embed(variables, batch):
        with compiled_with(compiler_options):
            embeddings, _ = objective.embed(variables, batch, None)
        tokens = batch["tokens"] * (batch["segment_ids"] > 0)
        return embeddings["texts"], tokens, batch["weights"] > 0

    # Replicated, so that every process has all rows.
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(embed, out_shardings=everywhere, compiler_options=compiler_options)
