"""From hidden vectors to logits over the vocabulary."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.models.layers.dense import matmul
from fmjax.models.layers.logical_axes import constrain, normal_init, zeros_init

# Far below any logit, and still finite in bfloat16.
_NEVER = -1e30


class LanguageHead(nn.Module):
    """Logits, tied to the table of token vectors (Press & Wolf 2017) or not.

    Attributes:
      vocab_size: V; ids at and above it are padding, never predicted.
      padded_size: rows of the table.
      tied: whether the weights are the table.
      init_std: standard deviation of untied weights.
      dtype: of the product's operands; logits are float32.
      bias: whether the logits have a bias.
      scale: multiplies the hidden vectors.
      softcap: logits x become softcap · tanh(x / softcap); None leaves them.
    """

    vocab_size: int
    padded_size: int
    tied: bool
    init_std: float
    dtype: jnp.dtype
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        table: Float[Array, "padded_V D"] | None,
    ) -> Float[Array, "B T padded_V"]:
        """Logits, float32; those of vocabulary padding are -1e30.

        Args:
          hidden: what the stack gave.
          table: of token vectors; read only where the weights are tied to it.
        """
        if self.tied:
            kernel = table.T
        else:
            init = normal_init(self.init_std, "embed", "vocab")
            shape = (hidden.shape[-1], self.padded_size)
            kernel = self.param("kernel", init, shape)
        if self.scale != 1.0:
            hidden = hidden * jnp.asarray(self.scale, hidden.dtype)
        hidden = hidden.astype(self.dtype)
        logits = matmul(hidden, kernel.astype(self.dtype), jnp.dtype("float32"))
        if self.bias:
            logits = logits + self.param("bias", zeros_init("vocab"), kernel.shape[1:])
        logits = constrain(logits, "batch", "length", "act_vocab")
        if self.softcap is not None:
            logits = self.softcap * jnp.tanh(logits / self.softcap)
        if self.padded_size == self.vocab_size:
            return logits
        return jnp.where(jnp.arange(self.padded_size) < self.vocab_size, logits, _NEVER)
