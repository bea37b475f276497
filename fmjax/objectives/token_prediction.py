"""Cross-entropy of tokens that a model predicts: what language objectives share."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from fmjax.configurable import free
from fmjax.errors import UserError
from fmjax.objectives.chunked_head import chunked_sums
from fmjax.objectives.fit import check_model, check_rows
from fmjax.objectives.router_terms import router_terms
from fmjax.objectives.terms import Batch, Ratio, RowShapes, Term


@dataclasses.dataclass(frozen=True)
class TokenPrediction:
    """Mean cross-entropy over the targets that count; subclasses say what is read.

    Attributes:
      model: gives `hidden` and `head`.
      z_loss: coefficient of the mean of log(Z)² (PaLM, Chowdhery et al. 2022: 1e-4).
      label_smoothing: share of each target spread over the vocabulary (Szegedy 2016).
      load_balance: coefficient of a mixture of experts' balance loss (Switch: 1e-2).
      router_z: of its router z-loss (ST-MoE: 1e-3).
      head_chunks: pieces of T in which logits are computed; one at a time is held.
        Where few of T are predicted, there are fewer pieces, but no larger ones.
    """

    model: nn.Module
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    load_balance: float = 0.0
    router_z: float = 0.0
    head_chunks: int = free(8)

    unit = "tokens"
    # What `init` and `_hidden` read of a batch: those that must be there, and others.
    reads = ("tokens",)
    may_read = ("positions", "segment_ids")

    def __post_init__(self):
        name = self.gin_name
        if not 0 <= self.label_smoothing < 1:
            raise UserError(
                f"{name}.label_smoothing = {self.label_smoothing}: expected 0 ≤ x < 1."
            )
        for field in ("z_loss", "load_balance", "router_z"):
            if getattr(self, field) < 0:
                raise UserError(f"{name}.{field} = {getattr(self, field)} is negative.")
        if self.head_chunks < 2:
            raise UserError(
                f"{name}.head_chunks = {self.head_chunks}: expected at least 2, so "
                "that the logits of a whole batch are never held."
            )
        check_model(self)

    def init(self, rng: Key[Array, ""]) -> dict:
        """Boxed variables of the model."""
        return self.model.init(rng, *(jnp.zeros((1, 1), jnp.int32),) * len(self.reads))

    def check(self, rows: RowShapes, vocab_size: int) -> None:
        """Raises a UserError where the model cannot take such rows.

        Args:
          rows: the shape of each array of a row.
          vocab_size: of the data.
        """
        check_rows(self, self._targets(), rows, vocab_size)

    def train_flops_per_row(self, params, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step for a row, padding or not."""
        (length,) = rows["tokens"]
        return length * self.model.train_flops_per_token(params, length)

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> tuple[dict[str, Term], dict[str, Ratio]]:
        """Terms and metrics of a batch.

        Args:
          variables: {"params": …}.
          batch: `reads` and `targets` int32, `weights` float32, all [B, …]; optionally
            `may_read`, and target_bytes float32 [B].
          rng: one key an example for dropout, None in evaluation.

        Returns:
          Terms "cross_entropy", and "z_loss", "load_balance", "router_z" where they
          have a coefficient; metrics of the plain cross-entropy.
        """
        out = self._hidden(variables, batch, rng)
        terms, metrics = self._predict(
            variables, out["hidden"], batch["targets"], batch["weights"]
        )
        if "target_bytes" in batch:
            nll, num_bytes = metrics["nll"].sum, batch["target_bytes"].sum()
            metrics["bits_per_byte"] = Ratio(nll / jnp.log(2.0), num_bytes)
        return terms | router_terms(self, out, batch), metrics

    def _targets(self) -> tuple[str, ...]:
        return ("targets", "weights")

    def _hidden(self, variables: dict, batch: Batch, rng) -> dict:
        read = {name: batch[name] for name in self.reads}
        read |= {name: batch[name] for name in self.may_read if name in batch}
        return self.model.apply(variables, **read, keys=rng, method="hidden")

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
