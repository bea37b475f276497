"""Token prediction: the base class of the language objectives."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Key

from fmjax.models.contracts import PredictsTokens, check_model
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.objectives.fit import check_reads, check_rows
from fmjax.objectives.router_terms import (
    check_coefficients,
    router_terms,
    router_weights,
)
from fmjax.objectives.terms import Batch, LossOutput, Ratio, RowShapes
from fmjax.objectives.token_loss import TokenLoss


@dataclasses.dataclass(frozen=True)
class TokenPrediction(TokenLoss):
    """Cross-entropy of tokens of a transformer; subclasses define its inputs.

    Attributes:
      model: has the methods `hidden` and `head`.
      load_balance: coefficient of the load-balancing loss of a mixture of experts
        (Switch: 1e-2).
      router_z: coefficient of its router z-loss (ST-MoE: 1e-3).

    The other fields are those of `TokenLoss`.
    """

    load_balance: float = 0.0
    router_z: float = 0.0

    unit = "tokens"
    # Arrays of a batch that `_hidden` reads: required ones, and optional ones.
    reads = ("tokens",)
    may_read = ("positions", "segment_ids")

    def __post_init__(self):
        super().__post_init__()
        check_model(self, PredictsTokens, "a model that predicts tokens")
        check_reads(self)
        check_coefficients(self)

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
        """Matrix FLOPs of a training step per row, padding included."""
        (length,) = rows["tokens"]
        return length * self.model.train_flops_per_token(params, length)

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> LossOutput:
        """Terms and metrics of a batch.

        Args:
          variables: {"params": …}.
          batch: `reads` and `targets` int32, `weights` float32, all [B, …]; optionally
            `may_read`, and target_bytes float32 [B].
          rng: one key per example for dropout; None in evaluation.

        Returns:
          Terms "cross_entropy", and "z_loss", "load_balance", "router_z" if their
          coefficients are not 0; metrics "nll" (without label smoothing), "accuracy",
          and, with target_bytes, "bits_per_byte".
        """
        out = self._hidden(variables, batch, rng)
        terms, metrics = self._predict(
            variables, out["hidden"], batch["targets"], batch["weights"]
        )
        if "target_bytes" in batch:
            nll, num_bytes = metrics["nll"].sum, batch["target_bytes"].sum()
            metrics["bits_per_byte"] = Ratio(nll / jnp.log(2.0), num_bytes)
        return LossOutput(terms | router_terms(self, out, batch), metrics)

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weights of the terms: numbers of targets and of rows with targets."""
        return self._prediction_weights(batch["weights"]) | router_weights(self, batch)

    def _targets(self) -> tuple[str, ...]:
        return ("targets", "weights")

    def _hidden(self, variables: dict, batch: Batch, rng) -> dict:
        text = TextInputs.from_arrays(batch, self.may_read)
        return self.model.apply(variables, text, keys=rng, method="hidden")
