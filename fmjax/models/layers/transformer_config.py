"""Configuration of a transformer stack."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from fmjax.configurable import configurable, runtime_field
from fmjax.models.layers.disentangled import Disentangled
from fmjax.models.layers.latent import Latent
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.multipliers import Multipliers
from fmjax.models.layers.norms import HeadNorm, Norm
from fmjax.models.layers.patch_rotary import PatchRotary
from fmjax.models.layers.position_bias import Alibi, RelativeBuckets, RelativeGrid
from fmjax.models.layers.quantized import Quantized
from fmjax.models.layers.remat import RematName, RematPolicy
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer_checks import check
from fmjax.sharding.platform import platform

AttentionKernel = Literal["auto", "xla", "blockwise", "cudnn", "triton", "splash"]


@configurable("transformer")
@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Configuration of a transformer stack.

    Attributes:
      num_layers: number of blocks.
      embed_dim: width D of the residual stream.
      num_heads: query heads H.
      num_kv_heads: key and value heads; None means num_heads.
      head_dim: width K of a head; None means embed_dim / num_heads.
      mlp_dim: hidden width of the feed-forward layer; None means 4 · embed_dim.
      norm: "layernorm" or "rmsnorm".
      norm_position: "pre" normalizes the input of a layer, "post" the sum of its input
        and output (Vaswani et al. 2017), "sandwich" its input and its output, before
        they are added (Gemma 2), "output" its output alone (OLMo 2).
      norm_epsilon: added to the norm's variance.
      first_norm: whether attention of the first layer has a norm before it; ModernBERT,
        whose embeddings are normalized, has none. All layers have the parameter.
      norm_weights: whether norms have weights (OLMo has none).
      unit_offset_norm: whether norm parameters are the weights minus one, as in Gemma.
      parallel: whether attention and feed-forward layer both read the block's input, in
        place of one after the other (GPT-J, Wang & Komatsuzaki 2021): through "norms"
        of their own (GPT-NeoX) or one "norm" (GPT-J); None: they do not.
      activation: of the feed-forward layer; gelu_tanh is GPT-2's, quick_gelu CLIP's,
        clamped_swiglu, which is gated, gpt-oss's.
      gated_mlp: whether the feed-forward layer is gated; with silu this is SwiGLU.
      bias: whether projections and LayerNorms have biases.
      qkv_bias: whether the projections to queries, keys and values have biases; None
        means bias.
      key_bias: whether the projection to keys has a bias where those to queries and
        values do (BEiT, DINOv3: not). Not False with transformer.latent.
      out_bias: whether the output projections of attention have biases; None means
        bias.
      mlp_bias: whether the feed-forward layer has biases; None means bias. Experts and
        their router have biases if it is True alone.
      norm_bias: whether LayerNorms have biases; None means bias.
      rotary: rotary positions, such as @rotary(), or @patch_rotary() of images; None
        for none.
      position_bias: position bias of attention scores: @alibi(), @relative_buckets() as
        in T5, @disentangled() as in DeBERTa, or @relative_grid() of images; None for
        none.
      window: sliding-window attention: in decoders a token attends to the `window`
        tokens up to its own, in encoders to those less than `window` away on both
        sides; None for all. See `AttentionMask`.
      global_every: with a window, every n-th layer attends to all tokens; None for no
        such layers.
      global_layers: with a window, the layers, from 0, that attend to all tokens, where
        they are not every n-th; None for those of global_every.
      qk_norm: whether there is an RMSNorm over each query and key head (Dehghani et al.
        2023), with weights that heads share. "each_head": the stack's kind of norm with
        weights for each head (StableLM 2); "all_heads": over all heads as one vector
        (OLMo 2).
      qkv_clip: queries, keys and values are clipped to ± this (OLMo); None for no
        clipping.
      attention_sinks: whether a learned score per head takes part in the softmax and
        adds nothing to its output (gpt-oss, OpenAI 2025; Xiao et al. 2023).
      attention_scale: of the scores; None means head_dim^(-1/2). Query weights are
        initialized with init_std / (attention_scale · √head_dim), as in T5, or
        with init_std where there is transformer.latent. Not with @disentangled().
      scale_by_layer: whether scores are divided by the layer's index from 1 (GPT-2 of
        Mistral, Karamcheti et al. 2021).
      latent: keys and values from one latent vector per token, see `Latent`
        (DeepSeek-V2); None for projections of the input.
      attention_softcap: scores x become cap · tanh(x / cap); None leaves them
        unchanged. Not with @disentangled().
      experts: a mixture of experts in place of each feed-forward layer, such as
        @experts(); None for a single feed-forward layer.
      dropout: share of embeddings and of each layer's output dropped in training.
      attention_dropout: share of attention weights dropped in training.
      mlp_dropout: share of the feed-forward's hidden layer dropped in training.
      stochastic_depth: share of examples for which the last layer is skipped in
        training; for layer l of L it is l/L of that (Huang et al. 2016).
      layer_scale: initial value of a learned factor for each feature of a layer's
        output (CaiT, Touvron et al. 2021); None for no such factors.
      init_std: standard deviation of weights; for those that write to the residual
        stream it is init_std / sqrt(2 · num_layers), as in GPT-2 (Radford et al. 2019).
      init_by_depth: whether the square root is in it.
      multipliers: constant factors in the forward pass; @mup() sets them.
      dtype: of the computation; "auto" is bfloat16 on accelerators and float32 on CPUs.
        Parameters are float32.
      quantized: "int8" or "float8": products with the weights of blocks are computed in
        eight bits, see `fmjax.models.layers.quantized`; None for in `dtype`.
      attention: the kernel, see `fmjax.models.layers.attention_kernels.attend`: "auto"
        selects it by the mesh's platform, and prints the reason if that kernel does not
        support the model.
      attention_block: the most queries and keys of a block of the kernel "splash", and
        keys of "blockwise", a multiple of 128; None for as many as suit the chip.
      context_attention: how attention crosses devices that have a part of each sequence
        (mesh.context), see `attend`: "ring", "all_gather" or "auto".
      share_layers: whether all layers have the same parameters (ALBERT, Lan et al.
        2020). Not with experts.dense_layers.
      scan_layers: whether one compiled block is scanned over layers, with stacked
        parameters, which compiles in a fraction of the time. False unrolls the blocks,
        with separate parameters.
      scan_unroll: layers of one iteration of that scan: more take longer to compile,
        and activations that are kept need not be copied in and out of stacks of all
        layers.
      pipeline_microbatches: microbatches of a pipeline over mesh.stage, a multiple of
        its stages, of the rows of a microbatch of the train step; None for as many as
        stages. See `fmjax.models.layers.pipeline`.
      pipeline_rounds: groups of layers of each stage; more make the bubble shorter, and
        pass activations on more often.
      remat: rematerialization: "none" keeps all activations; "dots" keeps matrix
        products and outputs of attention kernels; "weights" keeps products with
        weights; "attention" keeps outputs of the kernels "splash", "triton" and
        "blockwise"; "full" keeps only the inputs of blocks. The others are recomputed
        in the backward pass.
      remat_save: names of activations that are kept too, see
        `fmjax.models.layers.remat`.
      remat_offload: names of activations that are kept in the memory of the host.
    """

    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_dim: int | None = None
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_position: Literal["pre", "post", "sandwich", "output"] = "pre"
    norm_epsilon: float = 1e-5
    first_norm: bool = True
    norm_weights: bool = True
    unit_offset_norm: bool = False
    parallel: Literal["norms", "norm"] | None = None
    activation: Literal[
        "gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "clamped_swiglu"
    ] = "gelu_tanh"
    gated_mlp: bool = False
    bias: bool = True
    qkv_bias: bool | None = None
    key_bias: bool = True
    out_bias: bool | None = None
    mlp_bias: bool | None = None
    norm_bias: bool | None = None
    rotary: Rotary | PatchRotary | None = None
    position_bias: Alibi | RelativeBuckets | Disentangled | RelativeGrid | None = None
    window: int | None = None
    global_every: int | None = None
    global_layers: tuple[int, ...] | None = None
    qk_norm: bool | Literal["each_head", "all_heads"] = False
    qkv_clip: float | None = None
    attention_sinks: bool = False
    attention_scale: float | None = None
    scale_by_layer: bool = False
    latent: Latent | None = None
    attention_softcap: float | None = None
    experts: Experts | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    stochastic_depth: float = 0.0
    layer_scale: float | None = None
    init_std: float = 0.02
    init_by_depth: bool = True
    multipliers: Multipliers = Multipliers()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantized: Quantized | None = None
    attention: AttentionKernel = runtime_field("auto")
    attention_block: int | None = runtime_field(None)
    context_attention: Literal["auto", "ring", "all_gather"] = runtime_field("auto")
    share_layers: bool = False
    scan_layers: bool = True
    scan_unroll: int = runtime_field(1)
    pipeline_microbatches: int | None = runtime_field(None)
    pipeline_rounds: int = runtime_field(1)
    remat: RematPolicy = runtime_field("none")
    remat_save: tuple[RematName, ...] = runtime_field(())
    remat_offload: tuple[RematName, ...] = runtime_field(())

    def __post_init__(self):
        check(self)

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, with the default of None applied."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_width(self) -> int:
        """Width of a head, with the default of None applied."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of the feed-forward layer, with the default of None applied."""
        return 4 * self.embed_dim if self.mlp_dim is None else self.mlp_dim

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of activations; "auto" depends on the platform of the mesh."""
        if self.dtype == "auto":
            return jnp.dtype(jnp.float32 if platform() == "cpu" else jnp.bfloat16)
        return jnp.dtype(self.dtype)

    @property
    def out_init_std(self) -> float:
        """Standard deviation of weights that write to the residual stream."""
        if not self.init_by_depth:
            return self.init_std
        return self.init_std / (2 * self.num_layers) ** 0.5

    def has_bias(self, where: Literal["qkv", "out", "mlp", "norm"]) -> bool:
        """Whether a part has biases, with the default of None applied."""
        own = getattr(self, f"{where}_bias")
        return self.bias if own is None else own

    def is_global(self, layer: int) -> bool:
        """Whether the layer of this index, from 0, attends to all tokens."""
        if self.window is None:
            return True
        if self.global_layers is not None:
            return layer in self.global_layers
        return self.global_every is not None and (layer + 1) % self.global_every == 0

    def make_norm(self, name: str | None = None) -> Norm:
        """Makes a norm of this config's kind."""
        return Norm(
            self.norm,
            self.norm_epsilon,
            self.has_bias("norm"),
            self.unit_offset_norm,
            weights=self.norm_weights,
            name=name,
        )

    @property
    def head_norm(self) -> HeadNorm | None:
        """The norms over queries and keys; None for none."""
        if not self.qk_norm:
            return None
        if self.qk_norm is True:
            kind, weights = "rmsnorm", "shared"
        else:
            kind, weights = self.norm, self.qk_norm
        return HeadNorm(kind, self.norm_epsilon, self.unit_offset_norm, weights)
