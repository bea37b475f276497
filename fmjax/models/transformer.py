"""A stack of pre-norm transformer blocks, scanned or unrolled, with remat."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable, free
from fmjax.errors import UserError
from fmjax.models.attention import Attention, KeyValueCache
from fmjax.models.layers import FeedForward, Keys, Norm, constrain, dropout, fold_keys

# What the backward pass keeps of a block; the rest is computed again.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "weights": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@configurable("transformer")
@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of a transformer stack.

    Attributes:
      num_layers: blocks.
      embed_dim: width D of the residual stream.
      num_heads: query heads H.
      num_kv_heads: key and value heads; None means num_heads.
      head_dim: width K of a head; None means embed_dim / num_heads.
      mlp_dim: hidden width of the feed-forward layer; None means 4 · embed_dim.
      norm: "layernorm" or "rmsnorm".
      norm_epsilon: added to the norm's variance.
      activation: of the feed-forward layer; gelu_tanh is GPT-2's.
      gated_mlp: a gate on the feed-forward layer; with silu this is SwiGLU.
      bias: offsets in projections and LayerNorms.
      rope_theta: base of rotary positions; None for none.
      dropout: share of embeddings and of each layer's output dropped in training.
      attention_dropout: share of attention weights dropped in training.
      init_std: standard deviation of weights; those that write to the residual stream
        take init_std / sqrt(2 · num_layers), as in GPT-2 (Radford et al. 2019).
      dtype: of the computation; "auto" is bfloat16 on accelerators, float32 on CPUs.
        Parameters are float32 always.
      attention: see `fmjax.models.attention.attend`.
      scan_layers: one compiled block for all layers, their parameters stacked: compiles
        in a fraction of the time. False repeats the block, with parameters apart.
      remat: what the backward pass recomputes: "none"; "weights" keeps the products
        with weights; "dots" keeps all matrix products; "full" keeps block inputs only.
    """

    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_dim: int | None = None
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_epsilon: float = 1e-5
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu_tanh"
    gated_mlp: bool = False
    bias: bool = True
    rope_theta: float | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "xla", "cudnn"] = free("auto")
    scan_layers: bool = True
    remat: Literal["none", "weights", "dots", "full"] = free("none")

    def __post_init__(self):
        for name in ("num_layers", "embed_dim", "num_heads", "kv_heads", "mlp_width"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"transformer.{name} = {getattr(self, name)} is below 1."
                )
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise UserError(
                f"transformer.num_heads = {self.num_heads} does not divide "
                f"transformer.embed_dim = {self.embed_dim}; set transformer.head_dim."
            )
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"transformer.num_kv_heads = {self.kv_heads} does not divide "
                f"transformer.num_heads = {self.num_heads}."
            )
        if self.rope_theta is not None and self.head_width % 2:
            raise UserError(
                f"transformer.head_dim = {self.head_width} is odd; rotary positions "
                "turn pairs."
            )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"transformer.{name} = {getattr(self, name)}: expected 0 ≤ x < 1."
                )

    @property
    def kv_heads(self) -> int:
        """Key and value heads, resolved."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_width(self) -> int:
        """Width of a head, resolved."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of the feed-forward layer, resolved."""
        return 4 * self.embed_dim if self.mlp_dim is None else self.mlp_dim

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of activations, resolved for this machine."""
        if self.dtype == "auto":
            on_cpu = jax.default_backend() == "cpu"
            return jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)
        return jnp.dtype(self.dtype)

    def make_norm(self, name: str) -> Norm:
        """A norm of this config's kind."""
        return Norm(self.norm, self.norm_epsilon, self.bias, name=name)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        layer: tuple[Int[Array, ""], KeyValueCache | None],
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T S"] | None,
        keys: Keys,
    ) -> tuple[Float[Array, "B T D"], KeyValueCache | None]:
        """Applies one layer, given as its index and its cache."""
        c = self.config
        index, cache = layer
        keys = fold_keys(keys, index)
        out_std = c.init_std / (2 * c.num_layers) ** 0.5
        attention = Attention(
            num_heads=c.num_heads,
            num_kv_heads=c.kv_heads,
            head_dim=c.head_width,
            bias=c.bias,
            rope_theta=c.rope_theta,
            dropout=c.attention_dropout,
            implementation=c.attention,
            init_std=c.init_std,
            out_init_std=out_std,
            dtype=c.compute_dtype,
            name="attention",
        )
        y, cache = attention(
            c.make_norm("attention_norm")(x), positions, mask, cache, fold_keys(keys, 0)
        )
        x = constrain(
            x + dropout(y, c.dropout, fold_keys(keys, 1)),
            "batch",
            "length",
            "act_embed",
        )
        feed_forward = FeedForward(
            mlp_dim=c.mlp_width,
            activation=c.activation,
            gated=c.gated_mlp,
            bias=c.bias,
            init_std=c.init_std,
            out_init_std=out_std,
            dtype=c.compute_dtype,
            name="mlp",
        )
        y = feed_forward(c.make_norm("mlp_norm")(x))
        x = constrain(
            x + dropout(y, c.dropout, fold_keys(keys, 2)),
            "batch",
            "length",
            "act_embed",
        )
        return x, cache


class Stack(nn.Module):
    """All blocks, without the final norm."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T S"] | None,
        cache: KeyValueCache | None,
        keys: Keys,
    ) -> tuple[Float[Array, "B T D"], KeyValueCache | None]:
        """Applies every block in turn; the cache has a leading layers axis."""
        c = self.config
        block = Block
        if c.remat != "none":
            # Inside a scan XLA cannot undo rematerialization, so need not be stopped.
            block = nn.remat(
                Block, policy=REMAT_POLICIES[c.remat], prevent_cse=not c.scan_layers
            )
        if c.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
                out_axes=0,
                length=c.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(c, name="layers")
            indices = jnp.arange(c.num_layers)
            return scanned(x, (indices, cache), positions, mask, keys)
        caches = []
        for i in range(c.num_layers):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], cache)
            x, one = block(c, name=f"layer_{i}")(
                x, (jnp.int32(i), one), positions, mask, keys
            )
            caches.append(one)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *caches)


def stack_layers(params: dict, num_layers: int) -> dict:
    """A stack's parameters with `layer_0 … layer_{n-1}` joined as `layers`."""
    layers = [params[f"layer_{i}"] for i in range(num_layers)]
    return {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}


def unstack_layers(params: dict, num_layers: int) -> dict:
    """The inverse of `stack_layers`."""
    return {
        f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        for i in range(num_layers)
    }
