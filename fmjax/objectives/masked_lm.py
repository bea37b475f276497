"""Masked language modelling and next-sentence prediction (BERT, Devlin et al. 2019)."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jax.nn import log_softmax
from jaxtyping import Array, Float, Int, Key

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.contracts import Encoder, check_model
from fmjax.objectives.router_terms import router_terms, router_weights
from fmjax.objectives.terms import Batch, LossOutput, Ratio, RowShapes, Term
from fmjax.objectives.token_prediction import TokenPrediction


@configurable("masked_lm")
@dataclasses.dataclass(frozen=True)
class MaskedLM(TokenPrediction):
    """Masked language modelling: mean cross-entropy of the masked tokens.

    The model is an encoder, such as `bert`. For rows with next-sentence labels the
    model must have a next-sentence head.

    Attributes:
      max_predictions: the largest number of masked tokens of a row; the head is applied
        to that many positions, since it costs as much as many layers. None applies it
        to all T positions.
    """

    max_predictions: int | None = None

    may_read = ("positions", "segment_ids", "token_types")

    def __post_init__(self):
        super().__post_init__()
        check_model(self, Encoder, "an encoder, such as @bert()")
        check_predictions(self)

    def check(self, rows: RowShapes, vocab_size: int) -> None:
        """Raises a UserError where the model cannot take such rows."""
        if ("next_sentence" in rows) != self.model.next_sentence:
            raise UserError(
                f"{self.model.gin_name}.next_sentence = "
                f"{self.model.next_sentence}, but data has rows "
                f"with{'' if 'next_sentence' in rows else 'out'} next sentences."
            )
        super().check(rows, vocab_size)

    def check_data(self, data: Any) -> None:
        """Raises a UserError if rows may have more targets than max_predictions."""
        check_targets(self, data)

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> LossOutput:
        """Terms and metrics of a batch.

        Args:
          variables: {"params": …}.
          batch: tokens, targets int32 [B, T]; weights float32 [B, T], 1 where a token
            was masked; optionally positions, segment_ids, token_types int32 [B, T];
            optionally next_sentence int32 [B], 0 where the second sentence follows the
            first, with next_sentence_weights float32 [B].
          rng: one key per example for dropout; None in evaluation.

        Returns:
          The terms and metrics of `TokenPrediction`, and for rows with next_sentence
          also term "next_sentence" and metric "next_sentence_accuracy".
        """
        out = self._hidden(variables, batch, rng)
        places = chosen(batch["weights"], self.max_predictions)
        terms, metrics = self._predict(
            variables,
            *(pick(x, places) for x in self._predicted(out, batch)),
            length=batch["weights"].shape[1],
        )
        if "next_sentence" in batch:
            weights = batch["next_sentence_weights"]
            scores = log_softmax(out["next_sentence"])
            labels = batch["next_sentence"][:, None]
            nll = -jnp.take_along_axis(scores, labels, axis=-1)[:, 0]
            right = scores.argmax(-1) == batch["next_sentence"]
            terms["next_sentence"] = Term((nll * weights).sum(), weights.sum())
            metrics["next_sentence_accuracy"] = Ratio(
                (right * weights).sum(), weights.sum()
            )
        return LossOutput(terms | router_terms(self, out, batch), metrics)

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weights of the terms: numbers of masked tokens, of labels, of rows."""
        found = self._prediction_weights(
            predicted_weights(batch["weights"], self.max_predictions)
        )
        if "next_sentence" in batch:
            found["next_sentence"] = batch["next_sentence_weights"].sum()
        return found | router_weights(self, batch)

    def train_flops_per_row(self, params, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step per row, padding included."""
        return encoder_flops(self, params, rows)

    def _targets(self) -> tuple[str, ...]:
        targets = super()._targets()
        if self.model.next_sentence:
            targets += ("next_sentence", "next_sentence_weights")
        return targets

    def _predicted(self, out: dict, batch: Batch):
        return out["hidden"], batch["targets"], batch["weights"]


def encoder_flops(objective, params, rows: RowShapes) -> float:
    """Matrix FLOPs of a training step per row, for an objective of an encoder."""
    (length,) = rows["tokens"]
    predicted = min(objective.max_predictions or length, length) / length
    return length * objective.model.train_flops_per_token(params, length, predicted)


def check_predictions(objective) -> None:
    """Raises a UserError for a limit below 1."""
    limit = objective.max_predictions
    holds = limit is None or limit >= 1
    require(objective, "max_predictions", holds, "at least 1, or None")


@runtime_checkable
class MasksTokens(Protocol):
    """Protocol of data whose masking rule is known; a custom source need not have it.

    Attributes:
      corruption: with `rate` and `most_targets(length)`; None for no masking.
      length: T, tokens of a row.
    """

    corruption: Any
    length: int


def check_targets(objective, data: Any) -> None:
    """Raises a UserError if masking may choose more tokens than max_predictions."""
    if not isinstance(data, MasksTokens):
        return
    limit, masking = objective.max_predictions, data.corruption
    if limit is None or masking is None:
        return
    most = masking.most_targets(data.length)
    if most > limit:
        raise UserError(
            f"{objective.gin_name}.max_predictions = {limit}, but masking.rate = "
            f"{masking.rate} chooses up to {most} tokens of a row of data.length = "
            f"{data.length}; expected at least {most}, or None."
        )


def chosen(weights: Float[Array, "B T"], limit: int | None) -> Int[Array, "B P"] | None:
    """Positions of the first `limit` targets, filled up with others; None for all T."""
    if limit is None or limit >= weights.shape[1]:
        return None
    return jnp.argsort(weights <= 0, axis=-1, stable=True)[:, :limit]


def predicted_weights(weights: Float[Array, "B T"], limit: int | None) -> Array:
    """The weights of the predicted targets, [B, limit], or [B, T] without a limit."""
    return pick(weights, chosen(weights, limit))


def pick(x: Array, places: Int[Array, "B P"] | None) -> Array:
    """Gathers positions of each row: [B, T, …] → [B, P, …]; None for all of T."""
    if places is None:
        return x
    places = places.reshape(*places.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, places, axis=1)
