"""Inputs and options of a call of scaled dot-product attention."""

import dataclasses

from jaxtyping import Array, Float

from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.distance_bias import DistanceBias
from fmjax.models.layers.dropout import Keys


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """A call of masked attention, softmax(cap(scale · q k^T) + bias) v, with dropout.

    Attributes:
      q: [B, T, H, K], queries.
      k: [B, S, G, K], keys; G divides H, and each key head serves H / G query heads.
      v: [B, S, G, K], values.
      mask: which keys each query attends to.
      bias: [B or 1, H, T, S], added to the scores, or as a function of distances; None
        for none.
      scale: of the scores.
      softcap: scores x become softcap · tanh(x / softcap), before the bias; None leaves
        them unchanged.
      dropout_rate: share of the attention weights that are dropped.
      keys: one random key per example; None for no dropout.
      block: the most queries and keys of a block of a kernel; None for its own choice.
      sinks: [H], a score of each head that takes part in the softmax and adds nothing
        to the output; None for none.
    """

    q: Float[Array, "B T H K"]
    k: Float[Array, "B S G K"]
    v: Float[Array, "B S G K"]
    mask: AttentionMask
    bias: Float[Array, "#B H T S"] | DistanceBias | None
    scale: float
    softcap: float | None
    dropout_rate: float
    keys: Keys
    block: int | None = None
    sinks: Float[Array, " H"] | None = None

    @property
    def drops(self) -> bool:
        """Whether attention weights are dropped."""
        return self.keys is not None and self.dropout_rate > 0

    @property
    def bias_array(self) -> Float[Array, "#B H T S"] | None:
        """The bias as an array; None for none."""
        bias = self.bias
        return bias.dense() if isinstance(bias, DistanceBias) else bias

    def unusual(self, distances: bool = False) -> str | None:
        """An option of this call that no fused kernel supports; None without any.

        Args:
          distances: whether the kernel supports a bias by distance.
        """
        supported = distances and isinstance(self.bias, DistanceBias)
        if self.bias is not None and not supported:
            return "a bias is added to the scores (transformer.position_bias)"
        if self.sinks is not None:
            return "transformer.attention_sinks"
        if self.drops:
            return f"transformer.attention_dropout = {self.dropout_rate}"
        if self.mask.query_positions is not None:
            return "keys are read from a key-value cache"
        if self.mask.shared or self.mask.before:
            return "virtual tokens are before the texts of a row (@prefix(), @prompt())"
        return None
