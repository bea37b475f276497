"""Masked language modelling (BERT, Devlin et al. 2019), with next sentences."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jax.nn import log_softmax
from jaxtyping import Array, Float, Int, Key

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.contracts import Encoder, check_model
from fmjax.objectives.router_terms import router_terms, router_weights
from fmjax.objectives.terms import Batch, LossOutput, Ratio, RowShapes, Term
from fmjax.objectives.token_prediction import TokenPrediction


@configurable("masked_lm")
@dataclasses.dataclass(frozen=True)
class MaskedLM(TokenPrediction):
    """Mean cross-entropy of the tokens that were masked out.

    Its model is an encoder, such as `bert`. Where rows say whether their second
    sentence followed the first, so must the model.

    Attributes:
      max_predictions: the most masked tokens that a row may have, for the head costs as
        much as many layers; None looks for them in all T positions.
    """

    max_predictions: int | None = None

    may_read = ("positions", "segment_ids", "token_types")

    def __post_init__(self):
        super().__post_init__()
        check_model(self, Encoder, "an encoder, such as @bert()")
        check_predictions(self.gin_name, self.max_predictions)

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
        """Raises a UserError where rows may have more targets than are predicted."""
        check_targets(self, data)

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> LossOutput:
        """Terms and metrics of a batch, "next_sentence" among them where rows have it.

        Args:
          variables: {"params": …}.
          batch: tokens, targets int32 [B, T]; weights float32 [B, T], 1 where a token
            was masked; optionally positions, segment_ids, token_types int32 [B, T];
            next_sentence int32 [B], 0 where it follows, with next_sentence_weights
            float32 [B].
          rng: one key an example for dropout, None in evaluation.
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
        """How many masked tokens count, sentences, and rows that have any targets."""
        found = self._prediction_weights(
            predicted_weights(batch["weights"], self.max_predictions)
        )
        if "next_sentence" in batch:
            found["next_sentence"] = batch["next_sentence_weights"].sum()
        return found | router_weights(self, batch)

    def train_flops_per_row(self, params, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step for a row, padding or not."""
        return encoder_flops(self, params, rows)

    def _targets(self) -> tuple[str, ...]:
        targets = super()._targets()
        if self.model.next_sentence:
            targets += ("next_sentence", "next_sentence_weights")
        return targets

    def _predicted(self, out: dict, batch: Batch):
        return out["hidden"], batch["targets"], batch["weights"]


def encoder_flops(objective, params, rows: RowShapes) -> float:
    """Matrix FLOPs of a training step for a row of an encoder's objective."""
    (length,) = rows["tokens"]
    predicted = min(objective.max_predictions or length, length) / length
    return length * objective.model.train_flops_per_token(params, length, predicted)


def check_predictions(name: str, max_predictions: int | None) -> None:
    """Raises a UserError for a limit below 1."""
    if max_predictions is not None and max_predictions < 1:
        raise UserError(f"{name}.max_predictions = {max_predictions} is below 1.")


@runtime_checkable
class MasksTokens(Protocol):
    """Data that masks tokens by rules that it tells: a source of one's own need not.

    Attributes:
      corruption: with rate and `most_targets(length)`; None for no masking.
      length: T, of rows.
    """

    corruption: Any
    length: int


def check_targets(objective, data: Any) -> None:
    """Raises a UserError where masking may choose more tokens than are predicted."""
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
    """Places of the first `limit` targets that count, then others; None for all T."""
    if limit is None or limit >= weights.shape[1]:
        return None
    return jnp.argsort(weights <= 0, axis=-1, stable=True)[:, :limit]


def predicted_weights(weights: Float[Array, "B T"], limit: int | None) -> Array:
    """[B, T] or [B, limit]: the weights of the targets that are predicted."""
    return pick(weights, chosen(weights, limit))


def pick(x: Array, places: Int[Array, "B P"] | None) -> Array:
    """[B, T, …] → [B, P, …]: what is at these places of each row."""
    if places is None:
        return x
    places = places.reshape(*places.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, places, axis=1)
