"""Sizes and choices of a stack of transformer blocks."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from fmjax.configurable import configurable, runtime_field
from fmjax.models.layers.disentangled import Disentangled
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.norms import Norm
from fmjax.models.layers.position_bias import Alibi, RelativeBuckets
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer_checks import (
    check_attention,
    check_dropout,
    check_experts,
    check_kernel,
    check_positions,
    check_sizes,
)
from fmjax.sharding.platform import platform


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
      norm_position: "pre" normalizes what a layer reads, "post" the sum that it writes
        to (Vaswani et al. 2017), "sandwich" what it reads and what it adds (Gemma 2).
      norm_epsilon: added to the norm's variance.
      unit_offset_norm: norm weights are stored less one, as in Gemma.
      activation: of the feed-forward layer; gelu_tanh is GPT-2's, quick_gelu CLIP's.
      gated_mlp: a gate on the feed-forward layer; with silu this is SwiGLU.
      bias: offsets in projections and LayerNorms.
      qkv_bias: offsets in the projections to queries, keys and values; None means bias.
      rotary: rotary positions, such as @rotary(); None for none.
      position_bias: what positions add to attention scores: @alibi(),
        @relative_buckets() as in T5, or @disentangled() vectors as in DeBERTa; None for
        nothing.
      window: sliding-window attention: a token sees the `window` tokens up to its own
        in decoders; in encoders those less than `window` away on both sides; None for
        all. See `AttentionMask`.
      global_every: with a window, every n-th layer sees all; None for none.
      qk_norm: an RMSNorm over each query and key head (Dehghani et al. 2023).
      attention_scale: of the scores; None means head_dim^(-1/2). Queries' weights start
        smaller by as much as it is larger than that, as in T5. Not with
        @disentangled().
      attention_softcap: scores x become cap · tanh(x / cap); None leaves them. Not with
        @disentangled().
      experts: a mixture of experts in place of each feed-forward layer, such as
        @experts(); None for a single feed-forward layer.
      dropout: share of embeddings and of each layer's output dropped in training.
      attention_dropout: share of attention weights dropped in training.
      mlp_dropout: share of the feed-forward's hidden layer dropped in training.
      stochastic_depth: share of examples that skip what the last layer adds, in
        training; of layer l of L, l/L of that (Huang et al. 2016).
      layer_scale: first value of a learned factor for each feature that a layer adds
        (CaiT, Touvron et al. 2021); None for no such factors.
      init_std: standard deviation of weights; those that write to the residual stream
        take init_std / sqrt(2 · num_layers), as in GPT-2 (Radford et al. 2019).
      dtype: of the computation; "auto" is bfloat16 where the mesh is of
        accelerators, float32 where it is of CPUs.
        Parameters are float32 always.
      attention: the kernel, see `fmjax.models.layers.attention_kernels.attend`: "auto"
        takes that of the mesh's platform, or says why it cannot.
      scan_layers: one compiled block for all layers, their parameters stacked: compiles
        in a fraction of the time. False repeats the block, with parameters apart.
      remat: what the backward pass recomputes: "none" keeps all; "dots" keeps matrix
        products and what attention kernels give; "weights" the products with weights;
        "attention" what the kernels "splash" and "blockwise" give; "full" keeps block
        inputs only.
    """

    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_dim: int | None = None
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_position: Literal["pre", "post", "sandwich"] = "pre"
    norm_epsilon: float = 1e-5
    unit_offset_norm: bool = False
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu_tanh"
    gated_mlp: bool = False
    bias: bool = True
    qkv_bias: bool | None = None
    rotary: Rotary | None = None
    position_bias: Alibi | RelativeBuckets | Disentangled | None = None
    window: int | None = None
    global_every: int | None = None
    qk_norm: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    experts: Experts | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    stochastic_depth: float = 0.0
    layer_scale: float | None = None
    init_std: float = 0.02
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "xla", "blockwise", "cudnn", "splash"] = runtime_field(
        "auto"
    )
    scan_layers: bool = True
    remat: Literal["none", "dots", "weights", "attention", "full"] = runtime_field(
        "none"
    )

    def __post_init__(self):
        for check in (
            check_sizes,
            check_attention,
            check_positions,
            check_experts,
            check_kernel,
            check_dropout,
        ):
            check(self)

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
        """The dtype of activations, resolved for the devices of the mesh in use."""
        if self.dtype == "auto":
            return jnp.dtype(jnp.float32 if platform() == "cpu" else jnp.bfloat16)
        return jnp.dtype(self.dtype)

    @property
    def out_init_std(self) -> float:
        """Standard deviation of weights that write to the residual stream."""
        return self.init_std / (2 * self.num_layers) ** 0.5

    def make_norm(self, name: str | None = None) -> Norm:
        """A norm of this config's kind."""
        return Norm(
            self.norm, self.norm_epsilon, self.bias, self.unit_offset_norm, name=name
        )
