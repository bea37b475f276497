"""Next-token prediction, with optional z-loss and label smoothing."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from fmjax.configurable import configurable, free
from fmjax.errors import UserError
from fmjax.objectives.chunked_head import chunked_sums
from fmjax.objectives.terms import Batch, Ratio, Term


@configurable("causal_lm")
@dataclasses.dataclass(frozen=True)
class CausalLM:
    """Mean cross-entropy of the next token over the targets that count.

    Attributes:
      model: a decoder with `hidden` and `head`, such as `gpt`.
      z_loss: coefficient of the mean of log(Z)² (PaLM, Chowdhery et al. 2022: 1e-4).
      label_smoothing: share of each target spread over the vocabulary (Szegedy 2016).
      head_chunks: pieces of T in which logits are computed; one at a time is held.
    """

    model: nn.Module
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    head_chunks: int = free(8)

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"causal_lm.label_smoothing = {self.label_smoothing}: "
                "expected 0 ≤ x < 1."
            )
        if self.z_loss < 0:
            raise UserError(f"causal_lm.z_loss = {self.z_loss} is negative.")
        if self.head_chunks < 2:
            raise UserError(
                f"causal_lm.head_chunks = {self.head_chunks}: expected at least 2, so "
                "that the logits of a whole batch are never held."
            )

    def init(self, rng: Key[Array, ""]) -> dict:
        """Boxed variables of the model."""
        return self.model.init(rng, jnp.zeros((1, 1), jnp.int32))

    def check(self, length: int, vocab_size: int) -> None:
        """Raises a UserError where the model cannot take such batches."""
        name = self.model.gin_name
        if length > self.model.max_length:
            raise UserError(
                f"data.length = {length} exceeds {name}.max_length = "
                f"{self.model.max_length}."
            )
        if vocab_size > self.model.vocab_size:
            raise UserError(
                f"the data's vocabulary has {vocab_size} entries, {name}.vocab_size = "
                f"{self.model.vocab_size} is smaller."
            )

    def train_flops_per_token(self, params, length: int) -> float | None:
        """FLOPs of a training step for each token, where the model knows a formula."""
        formula = getattr(self.model, "train_flops_per_token", None)
        return formula(params, length) if formula else None

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> tuple[dict[str, Term], dict[str, Ratio]]:
        """Terms "cross_entropy" and "z_loss"; metrics of the plain cross-entropy.

        Args:
          variables: {"params": …}.
          batch: tokens, targets int32 [B, T]; weights float32 [B, T]; optionally
            segment_ids, positions int32 [B, T] and target_bytes float32 [B].
          rng: one key an example for dropout, None in evaluation.
        """
        hidden = self.model.apply(
            variables,
            batch["tokens"],
            positions=batch.get("positions"),
            segment_ids=batch.get("segment_ids"),
            keys=rng,
            method="hidden",
        )["hidden"]

        def sums(hidden, targets, weights):
            logits = self.model.apply(variables, hidden, method="head")
            return self._sums(logits, targets, weights)

        differentiable, (nll, correct) = chunked_sums(
            sums, hidden, (batch["targets"], batch["weights"]), self.head_chunks
        )
        weight = batch["weights"].sum()
        terms = {"cross_entropy": Term(differentiable[0], weight)}
        if self.z_loss:
            terms["z_loss"] = Term(differentiable[1], weight, self.z_loss)
        metrics = {"nll": Ratio(nll, weight), "accuracy": Ratio(correct, weight)}
        if "target_bytes" in batch:
            num_bytes = batch["target_bytes"].sum()
            metrics["bits_per_byte"] = Ratio(nll / jnp.log(2.0), num_bytes)
        return terms, metrics

    def _sums(
        self,
        logits: Float[Array, "B t padded_V"],
        targets: Int[Array, "B t"],
        weights: Float[Array, "B t"],
    ):
        log_z = jax.nn.logsumexp(logits, axis=-1)
        ids = jnp.arange(logits.shape[-1])
        # A masked sum stays on its shard of the vocabulary; a gather would not.
        gold = jnp.where(ids == targets[..., None], logits, 0).sum(-1)
        nll = log_z - gold
        smoothed = nll
        if self.label_smoothing:
            mean = jnp.where(ids < self.model.vocab_size, logits, 0).sum(-1)
            mean = mean / self.model.vocab_size
            smoothed = nll + self.label_smoothing * (gold - mean)
        differentiable = [(smoothed * weights).sum()]
        if self.z_loss:
            differentiable.append((log_z**2 * weights).sum())
        correct = (gold >= logits.max(-1)).astype(jnp.float32)
        aux = ((nll * weights).sum(), (correct * weights).sum())
        return tuple(differentiable), jax.lax.stop_gradient(aux)
