"""The parts every family shares: norms, feed-forward, embeddings, dropout.

Weights are made with `self.param` and applied with einsum rather than by linen's
DenseGeneral, whose initializer fails on several feature axes under a mesh.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

ACTIVATIONS: dict[str, Callable] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    # GPT-1's approximation of gelu, by which OpenAI's CLIP was trained.
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "tanh": jnp.tanh,
}

Keys = Key[Array, " B"] | None


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Places an activation by logical names; does nothing outside a mesh."""
    return nn.with_logical_constraint(x, names)


def normal_init(stddev: float, *names: str | None) -> Callable:
    """A normal initializer of parameters with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.normal(stddev), names)


def zeros_init(*names: str | None) -> Callable:
    """Zeros with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.zeros, names)


def constant_init(value: float, *names: str | None) -> Callable:
    """One value everywhere, with these logical axes."""
    return nn.with_logical_partitioning(nn.initializers.constant(value), names)


def fold_keys(keys: Keys, data: int | jax.Array) -> Keys:
    """New keys for one place in the model, one per example; None stays None."""
    if keys is None:
        return None
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def dropout(x: Float[Array, "B ..."], rate: float, keys: Keys) -> Array:
    """Zeroes a share `rate` of `x` and scales up the rest (Srivastava et al. 2014).

    Each example draws with its own key, so that neither the mesh nor the microbatch
    an example falls into changes what is dropped. Without keys nothing is.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def drop_path(
    x: Float[Array, "B ..."], rate: float | Float[Array, ""], keys: Keys
) -> Array:
    """Zeroes `x` of a share `rate` of examples and scales up the others'.

    Without keys nothing is zeroed.
    """
    if keys is None:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys)
    keep = keep.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(
    x: Float[Array, "... I"], kernel: Float[Array, "I O"], out_dtype: jnp.dtype
) -> Float[Array, "... O"]:
    """x @ kernel, with a backward pass in the dtype of `x`.

    JAX would multiply by a float32 gradient of logits in float32, at a fraction of the
    speed of bfloat16, and take the kernel's gradient as (gradient^T x)^T, for which
    XLA's CPU backend copies the larger of the two operands.
    """
    return jnp.einsum("...i,io->...o", x, kernel, preferred_element_type=out_dtype)


def _matmul_forward(x, kernel, out_dtype):
    return matmul(x, kernel, out_dtype), (x, kernel)


def _matmul_backward(out_dtype, operands, gradient):
    x, kernel = operands
    gradient = gradient.astype(x.dtype)
    into_x = jnp.einsum("...o,io->...i", gradient, kernel)
    into_kernel = jnp.einsum("...i,...o->io", x, gradient)
    return into_x, into_kernel


matmul.defvjp(_matmul_forward, _matmul_backward)


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019), in float32.

    Attributes:
      kind: "layernorm" or "rmsnorm".
      epsilon: added to the variance or mean square.
      bias: whether LayerNorm has an offset; RMSNorm never has.
      unit_offset: the weight is stored less one, as in Gemma.
      axis: logical name of the last axis.
    """

    kind: str
    epsilon: float
    bias: bool
    unit_offset: bool = False
    axis: str = "norm"

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalizes over the last axis; keeps the dtype."""
        init = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
        init = nn.with_logical_partitioning(init, (self.axis,))
        scale = self.param("scale", init, x.shape[-1:])
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.epsilon)
        y = y * (scale + 1 if self.unit_offset else scale)
        if self.bias and self.kind == "layernorm":
            y = y + self.param("bias", zeros_init(self.axis), x.shape[-1:])
        return y.astype(x.dtype)


class FeedForward(nn.Module):
    """act(x W_in) W_out, or (act(x W_gate) * x W_in) W_out (Shazeer 2020).

    Attributes:
      mlp_dim: width of the hidden layer.
      activation: a name in `ACTIVATIONS`.
      gated: whether a second projection gates the first.
      bias: whether the projections have offsets.
      init_std: standard deviation of the inward weights.
      out_init_std: standard deviation of the outward weights.
      dropout: share of the hidden layer dropped in training.
      dtype: of the computation.
    """

    mlp_dim: int
    activation: str
    gated: bool
    bias: bool
    init_std: float
    out_init_std: float
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], keys: Keys) -> Float[Array, "B T D"]:
        """Applies the layer to every position."""
        activate = ACTIVATIONS[self.activation]
        h = self._inward("in", x)
        h = activate(self._inward("gate", x)) * h if self.gated else activate(h)
        h = constrain(h, "batch", "length", "act_mlp")
        h = dropout(h, self.dropout, keys)
        out_init = normal_init(self.out_init_std, "mlp", "embed")
        kernel = self.param("out", out_init, (self.mlp_dim, x.shape[-1]))
        y = matmul(h, kernel.astype(self.dtype), self.dtype)
        if self.bias:
            bias = self.param("out_bias", zeros_init("embed"), x.shape[-1:])
            y = y + bias.astype(self.dtype)
        return y

    def _inward(self, name: str, x: Array) -> Array:
        init = normal_init(self.init_std, "embed", "mlp")
        kernel = self.param(name, init, (x.shape[-1], self.mlp_dim))
        h = matmul(x, kernel.astype(self.dtype), self.dtype)
        if self.bias:
            bias = self.param(f"{name}_bias", zeros_init("mlp"), (self.mlp_dim,))
            h = h + bias.astype(self.dtype)
        return h


class Dense(nn.Module):
    """x W + b from one width to another.

    Attributes:
      features: the width given.
      axes: logical names of the weight's two axes.
      bias: whether there is an offset.
      init_std: standard deviation of the weight.
      dtype: of the computation.
    """

    features: int
    axes: tuple[str | None, str | None]
    bias: bool
    init_std: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """Applies the layer to the last axis."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", normal_init(self.init_std, *self.axes), shape)
        y = matmul(x.astype(self.dtype), kernel.astype(self.dtype), self.dtype)
        if self.bias:
            bias = self.param("bias", zeros_init(self.axes[1]), shape[1:])
            y = y + bias.astype(self.dtype)
        return y


class Embedding(nn.Module):
    """A table of vectors, looked up by id.

    Attributes:
      num_rows: ids that may be looked up.
      dim: width of a vector.
      axis: logical name of the table's rows.
      init_std: standard deviation of the table.
      dtype: of the vectors given.
    """

    num_rows: int
    dim: int
    axis: str
    init_std: float
    dtype: jnp.dtype

    def setup(self):
        """Declares the table."""
        init = normal_init(self.init_std, self.axis, "embed")
        self.table = self.param("table", init, (self.num_rows, self.dim))

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Vectors of `ids`."""
        # Gathered whole in width first, as FSDP gathers every weight that is used; from
        # shards of it XLA would repeat the lookup on every device.
        table = constrain(self.table.astype(self.dtype), self.axis, None)
        return jnp.take(table, ids, axis=0)
