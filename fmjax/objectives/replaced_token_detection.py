"""Replaced-token detection (ELECTRA, Clark et al. 2020)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from fmjax.configurable import configurable
from fmjax.errors import require
from fmjax.models.layers.dropout import fold_keys
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.objectives.masked_lm import (
    check_predictions,
    check_targets,
    chosen,
    encoder_flops,
    pick,
    predicted_weights,
)
from fmjax.objectives.router_terms import router_terms, router_weights
from fmjax.objectives.terms import Batch, LossOutput, Ratio, RowShapes, Term
from fmjax.objectives.token_prediction import TokenPrediction


@configurable("replaced_token_detection")
@dataclasses.dataclass(frozen=True)
class ReplacedTokenDetection(TokenPrediction):
    """Replaced-token detection: a generator's masked LM loss plus a discriminator's.

    The model is `electra`. The generator predicts the masked tokens, and tokens sampled
    from it replace them; no gradient passes through the samples (section 2). The
    discriminator classifies every token except padding as original or replaced; a
    sample that equals the original token counts as original.

    Attributes:
      detection: coefficient of the discriminator's loss (λ = 50 in the paper).
      max_predictions: the largest number of masked tokens of a row, which are predicted
        and replaced; None allows all T positions.
    """

    detection: float = 50.0
    max_predictions: int | None = None

    may_read = ("positions", "segment_ids", "token_types")

    def __post_init__(self):
        super().__post_init__()
        check_predictions(self)
        require(self, "detection", self.detection >= 0, "at least 0")

    def check_data(self, data: Any) -> None:
        """Raises a UserError if rows may have more targets than max_predictions."""
        check_targets(self, data)

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> LossOutput:
        """Terms and metrics of a batch.

        Args:
          variables: {"params": …}.
          batch: tokens int32 [B, T] with masks, targets int32 [B, T] and weights
            float32 [B, T] of what was masked; segment_ids int32 [B, T], 0 for padding;
            optionally positions and token_types.
          rng: one key per example; None in evaluation, where sampling is seeded by the
            example's targets.

        Returns:
          Terms "detection", "cross_entropy" (the generator's) and the other terms of
          `TokenPrediction`; metrics of both; "replaced", the share of tokens that
          differ from the original; and, in evaluation, "auc", the probability that the
          discriminator scores a replaced token higher than an original token of the
          same sequence.
        """
        text = TextInputs.from_arrays(batch, self.may_read)
        generated = self.model.apply(
            variables, text, keys=fold_keys(rng, 0), method="generator_hidden"
        )
        length = batch["weights"].shape[1]
        places = chosen(batch["weights"], self.max_predictions)
        hidden, targets, weights = (
            pick(x, places)
            for x in (generated["hidden"], batch["targets"], batch["weights"])
        )
        generator, metrics = self._predict(
            variables, hidden, targets, weights, "generator_head", length
        )
        corrupted, replaced = self._corrupt(variables, hidden, places, batch, rng)
        text = dataclasses.replace(text, tokens=corrupted)
        out = self.model.apply(variables, text, keys=fold_keys(rng, 1), method="hidden")
        logits = self.model.apply(variables, out["hidden"], method="head")
        real = _tokens(batch)
        count = real.sum()
        # -log σ(x) where replaced, -log(1 - σ(x)) elsewhere.
        nll = jax.nn.softplus(jnp.where(replaced, -logits, logits))
        terms = {"detection": Term((nll * real).sum(), count, self.detection)}
        right = ((logits > 0) == replaced) * real
        metrics = {f"generator_{name}": ratio for name, ratio in metrics.items()}
        metrics["detection_accuracy"] = Ratio(right.sum(), count)
        metrics["replaced"] = Ratio((replaced * real).sum(), count)
        # Not in training: it compares all T² pairs of tokens of a row.
        if rng is None:
            metrics["auc"] = _auc(logits, replaced & (real > 0), ~replaced & (real > 0))
        routers = out | {"generator_router": generated["router"]}
        routed = router_terms(self, routers, batch)
        return LossOutput(terms | generator | routed, metrics)

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weights of the terms: numbers of tokens, predicted tokens, and rows."""
        predicted = predicted_weights(batch["weights"], self.max_predictions)
        return (
            {"detection": _tokens(batch).sum()}
            | self._prediction_weights(predicted)
            | router_weights(self, batch)
        )

    def train_flops_per_row(self, params, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step per row, padding included."""
        return encoder_flops(self, params, rows)

    def _targets(self) -> tuple[str, ...]:
        # Required: only segment ids mark padding.
        return (*super()._targets(), "segment_ids")

    def _corrupt(
        self, variables, hidden, places, batch, rng
    ) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
        """Tokens with samples at masked positions, and which of them were replaced."""
        if rng is None:
            places_of = jnp.arange(1, batch["targets"].shape[1] + 1)
            sums = (batch["targets"] * places_of).sum(-1)
            rng = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), sums)
        length = batch["targets"].shape[1]
        drawn = self._draw(variables, hidden, fold_keys(rng, 2), length)
        was_masked = batch["weights"] > 0
        originals = jnp.where(was_masked, batch["targets"], batch["tokens"])
        if places is not None:
            rows = jnp.arange(places.shape[0])[:, None]
            drawn = originals.at[rows, places].set(drawn)
            # Masked tokens beyond the limit are restored.
            was_masked &= jnp.zeros_like(was_masked).at[rows, places].set(True)
        corrupted = jnp.where(was_masked, drawn, originals)
        return corrupted, corrupted != originals

    def _draw(
        self,
        variables: dict,
        hidden: Float[Array, "B P G"],
        keys: Key[Array, " B"],
        length: int,
    ) -> Int[Array, "B P"]:
        """Samples a token per position, in chunks, to bound the memory of logits."""
        B, P, _ = hidden.shape
        size = -(-P // self._pieces(P, length))
        starts = jnp.arange(0, P, size)
        hidden = jnp.pad(hidden, [(0, 0), (0, -P % size), (0, 0)])

        def chunk(start):
            part = jax.lax.dynamic_slice_in_dim(hidden, start, size, axis=1)
            logits = self.model.apply(variables, part, method="generator_head")
            at = fold_keys(keys, start)
            return jax.vmap(jax.random.categorical)(at, logits).astype(jnp.int32)

        drawn = jnp.moveaxis(jax.lax.map(chunk, starts), 0, 1).reshape(B, -1)
        return jax.lax.stop_gradient(drawn[:, :P])


def _tokens(batch: Batch) -> Float[Array, "B T"]:
    """1 for tokens, 0 for padding."""
    return (batch["segment_ids"] > 0).astype(jnp.float32)


def _auc(
    scores: Float[Array, "B T"], positive: Bool[Array, "B T"], negative: Array
) -> Ratio:
    """AUC as a ratio: correctly ordered (positive, negative) pairs of a row over all.

    Ties count half.
    """
    above = (scores[:, :, None] > scores[:, None, :]) + 0.5 * (
        scores[:, :, None] == scores[:, None, :]
    )
    pairs = positive[:, :, None] & negative[:, None, :]
    return Ratio((above * pairs).sum(), pairs.sum().astype(jnp.float32))
