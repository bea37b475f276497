"""Cross-entropy of tokens by a model's head, a few places at a time."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fmjax.configurable import runtime_field
from fmjax.errors import UserError
from fmjax.objectives.chunked_head import chunked_sums
from fmjax.objectives.terms import Ratio, Term


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """Mean cross-entropy over the targets that count; subclasses say of what.

    Attributes:
      model: has `head` and `vocab_size`.
      z_loss: coefficient of the mean of log(Z)² (PaLM, Chowdhery et al. 2022: 1e-4).
      label_smoothing: share of each target spread over the vocabulary (Szegedy 2016).
      head_chunks: pieces of T in which logits are computed; one at a time is held.
        Where few of T are predicted, there are fewer pieces, but no larger ones.
    """

    model: nn.Module
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    head_chunks: int = runtime_field(8)

    def __post_init__(self):
        name = self.gin_name
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"{name}.label_smoothing = {self.label_smoothing}: expected 0 ≤ x < 1."
            )
        if self.z_loss < 0:
            raise UserError(f"{name}.z_loss = {self.z_loss} is negative.")
        if self.head_chunks < 2:
            raise UserError(
                f"{name}.head_chunks = {self.head_chunks}: expected at least 2, so "
                "that the logits of a whole batch are never held."
            )

    def _predict(
        self,
        variables: dict,
        hidden: Float[Array, "B T D"],
        targets: Int[Array, "B T"],
        weights: Float[Array, "B T"],
        head: str = "head",
        length: int | None = None,
    ) -> tuple[dict[str, Term], dict[str, Ratio]]:
        """Terms "cross_entropy" and "z_loss", metrics "nll" and "accuracy".

        Those given may be a few of `length` tokens a row; None: they are all.
        """

        def sums(hidden, targets, weights):
            logits = self.model.apply(variables, hidden, method=head)
            return self._sums(logits, targets, weights)

        differentiable, (nll, correct) = chunked_sums(
            sums, hidden, (targets, weights), self._pieces(hidden.shape[1], length)
        )
        weight = weights.sum()
        terms = {"cross_entropy": Term(differentiable[0], weight)}
        if self.z_loss:
            terms["z_loss"] = Term(differentiable[1], weight, self.z_loss)
        metrics = {"nll": Ratio(nll, weight), "accuracy": Ratio(correct, weight)}
        return terms, metrics

    def _pieces(self, predicted: int, length: int | None) -> int:
        """In how many pieces of T to compute the logits of `predicted` places."""
        size = -(-(length or predicted) // self.head_chunks)
        return -(-predicted // size)

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
