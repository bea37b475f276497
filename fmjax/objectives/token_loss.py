"""Cross-entropy of tokens, with the logits of a model's head computed in chunks."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fmjax.configurable import runtime_field
from fmjax.errors import require
from fmjax.objectives.chunked_head import chunked_sums
from fmjax.objectives.objective import Objective
from fmjax.objectives.terms import Ratio, Term


@dataclasses.dataclass(frozen=True)
class TokenLoss(Objective):
    """Mean cross-entropy of tokens; subclasses define the targets.

    Attributes:
      model: has `head` and `vocab_size`.
      z_loss: coefficient of the mean of log(Z)² (PaLM, Chowdhery et al. 2022: 1e-4).
      label_smoothing: share of each target spread over the vocabulary (Szegedy 2016).
      head_chunks: number of chunks of T; the logits of one chunk are in memory at a
        time. If only some positions are predicted, there are fewer chunks of the same
        size.
    """

    model: nn.Module
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    head_chunks: int = runtime_field(8)

    def __post_init__(self):
        smoothing = self.label_smoothing
        require(self, "label_smoothing", 0 <= smoothing < 1, "0 ≤ x < 1")
        require(self, "z_loss", self.z_loss >= 0, "at least 0")
        require(
            self,
            "head_chunks",
            self.head_chunks >= 2,
            "at least 2, so that the logits of a whole batch are never held",
        )

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the model."""
        return self.model.vocab_size

    def _predict(
        self,
        variables: dict,
        hidden: Float[Array, "B T D"],
        targets: Int[Array, "B T"],
        weights: Float[Array, "B T"],
        head: str = "head",
        length: int | None = None,
        coefficient: float = 1.0,
    ) -> tuple[dict[str, Term], dict[str, Ratio]]:
        """Terms "cross_entropy" and "z_loss", metrics "nll" and "accuracy".

        Args:
          variables: of the model.
          hidden: input of the head.
          targets: token ids, int32.
          weights: of the targets, float32.
          head: name of the model's method that gives logits of `hidden`.
          length: tokens of a row, if `hidden` has only some of them; None if it has
            all.
          coefficient: of the term "cross_entropy".
        """

        def sums(variables, hidden, targets, weights):
            logits = self.model.apply(variables, hidden, method=head)
            return self._sums(logits, targets, weights, coefficient)

        (loss,), (cross_entropy, log_z, nll, correct) = chunked_sums(
            sums,
            variables,
            hidden,
            (targets, weights),
            self._pieces(hidden.shape[1], length),
        )
        weight = weights.sum()
        if self.z_loss:
            # The head's gradients are computed once for both terms: `loss` is their
            # weighted sum, and its gradient is attached to z_loss.
            gradient = (loss - jax.lax.stop_gradient(loss)) / self.z_loss
            terms = {
                "cross_entropy": Term(cross_entropy, weight, coefficient),
                "z_loss": Term(log_z + gradient, weight, self.z_loss),
            }
        else:
            terms = {"cross_entropy": Term(loss, weight, coefficient)}
        metrics = {"nll": Ratio(nll, weight), "accuracy": Ratio(correct, weight)}
        return terms, metrics

    def _prediction_weights(
        self, weights: Float[Array, "..."]
    ) -> dict[str, Float[Array, ""]]:
        """The weights of the terms of `_predict`, given the weights of the targets."""
        weight = weights.sum()
        z_loss = {"z_loss": weight} if self.z_loss else {}
        return {"cross_entropy": weight} | z_loss

    def _pieces(self, predicted: int, length: int | None) -> int:
        """The number of chunks for the logits of `predicted` positions."""
        size = -(-(length or predicted) // self.head_chunks)
        return -(-predicted // size)

    def _sums(
        self,
        logits: Float[Array, "B t padded_V"],
        targets: Int[Array, "B t"],
        weights: Float[Array, "B t"],
        coefficient: float,
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
        loss = cross_entropy = (smoothed * weights).sum()
        squares = jnp.zeros(())
        if self.z_loss:
            squares = (log_z**2 * weights).sum()
            loss = coefficient * cross_entropy + self.z_loss * squares
        correct = (gold >= logits.max(-1)).astype(jnp.float32)
        aux = (cross_entropy, squares, (nll * weights).sum(), (correct * weights).sum())
        return (loss,), jax.lax.stop_gradient(aux)
