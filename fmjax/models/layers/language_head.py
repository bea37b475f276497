"""Language-model head: logits over the vocabulary from hidden vectors."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.models.layers.adapters import linear
from fmjax.models.layers.head_product import head_product
from fmjax.models.layers.logical_axes import constrain, normal_init, zeros_init
from fmjax.sharding.platform import platform

# Far below any logit, and finite in bfloat16.
_NEVER = -1e30
# With fewer, as in decoding, the copy takes longer than what it saves.
_MANY_ROWS = 128


@jax.custom_vjp
def _copied_transpose(table: Float[Array, "V D"]) -> Float[Array, "D V"]:
    """The kernel of tied weights, as a copy instead of within a product.

    XLA's product on CPUs is slow with the table as it is, from `_MANY_ROWS` rows on:
    256 rows with V = 8192 and 50257 take 28 and 538 ms, with the copy 18 and 418.
    """
    return jax.lax.optimization_barrier(table.T)


def _forward(table):
    return _copied_transpose(table), None


def _backward(_, gradient):
    return (gradient.T,)


_copied_transpose.defvjp(_forward, _backward)


class LanguageHead(nn.Module):
    """Language-model head, tied to the token embedding (Press & Wolf 2017) or not.

    Attributes:
      vocab_size: V; ids from V on are padding of the vocabulary and never predicted.
      padded_size: rows of the table, padding included.
      tied: whether the weights are those of the token embedding.
      init_std: standard deviation of untied weights.
      dtype: of the product's operands; logits are float32.
      bias: whether the logits have a bias.
      scale: multiplies the hidden vectors.
      softcap: logits x become softcap · tanh(x / softcap); None leaves them unchanged.
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
          hidden: output of the stack.
          table: of the token embedding; read only if `tied`.
        """
        if self.tied:
            rows = hidden.size // hidden.shape[-1]
            copied = platform() == "cpu" and rows >= _MANY_ROWS
            kernel = _copied_transpose(table) if copied else table.T
        else:
            init = normal_init(self.init_std, "embed", "vocab")
            shape = (hidden.shape[-1], self.padded_size)
            kernel = self.param("kernel", init, shape)
        if self.scale != 1.0:
            hidden = hidden * jnp.asarray(self.scale, hidden.dtype)
        hidden = hidden.astype(self.dtype)

        def multiply(x: Array, weights: Array, offset: Array | None = None) -> Array:
            del offset  # Added in float32 below.
            return head_product(x, weights)

        if self.tied:  # An adapter of the table is one of its rows' lookup alone.
            logits = multiply(hidden, kernel.astype(self.dtype))
        else:
            logits = linear(self, "kernel", kernel, hidden, multiply)
        if self.bias:
            logits = logits + self.param("bias", zeros_init("vocab"), kernel.shape[1:])
        logits = constrain(logits, "batch", "length", "act_vocab")
        if self.softcap is not None:
            logits = self.softcap * jnp.tanh(logits / self.softcap)
        if self.padded_size == self.vocab_size:
            return logits
        return jnp.where(jnp.arange(self.padded_size) < self.vocab_size, logits, _NEVER)
