"""What a config of a transformer stack may not say, by the names of its fields."""

from typing import Any

from fmjax.errors import UserError, require
from fmjax.models.layers.disentangled import Disentangled
from fmjax.models.layers.lanes import LANES
from fmjax.models.layers.position_bias import Alibi, RelativeBuckets
from fmjax.models.layers.quantized import is_installed
from fmjax.models.layers.rotary import Rotary

# A `TransformerConfig`, whose module imports this one.
Config = Any


def check(config: Config) -> None:
    """Raises UserError for fields out of bounds, or that exclude each other."""
    for each in (
        _check_sizes,
        _check_block,
        _check_attention,
        _check_latent,
        _check_positions,
        _check_experts,
        _check_kernel,
        _check_dropout,
        _check_remat,
        _check_quantized,
    ):
        each(config)


def _check_sizes(c: Config) -> None:
    """Raises UserError for invalid numbers of layers, heads and features."""
    for name in ("num_layers", "embed_dim", "num_heads", "kv_heads", "mlp_width"):
        require(c, name, getattr(c, name) >= 1, "at least 1")
    require(c, "pipeline_rounds", c.pipeline_rounds >= 1, "at least 1")
    micro = c.pipeline_microbatches
    require(c, "pipeline_microbatches", micro is None or micro >= 1, "at least 1")
    if c.head_dim is None and c.embed_dim % c.num_heads:
        raise UserError(
            f"transformer.num_heads = {c.num_heads} does not divide "
            f"transformer.embed_dim = {c.embed_dim}; set transformer.head_dim."
        )
    if c.num_heads % c.kv_heads:
        raise UserError(
            f"transformer.num_kv_heads = {c.kv_heads} does not divide "
            f"transformer.num_heads = {c.num_heads}."
        )


def _check_block(c: Config) -> None:
    """Raises UserError for norms and gates that exclude each other."""
    if c.parallel is not None:
        with_one = c.norm_position == "pre"
        require(c, "norm_position", with_one, "'pre' with transformer.parallel")
    gated = c.activation != "clamped_swiglu" or c.gated_mlp
    require(c, "gated_mlp", gated, "True with transformer.activation 'clamped_swiglu'")


def _check_attention(c: Config) -> None:
    """Raises UserError for invalid windows and options of disentangled attention."""
    for name in ("window", "global_every"):
        value = getattr(c, name)
        require(c, name, value is None or value >= 1, "at least 1, or None")
    for name in ("global_every", "global_layers"):
        if getattr(c, name) is not None and c.window is None:
            raise UserError(
                f"transformer.{name} = {getattr(c, name)} needs transformer.window, "
                "which is None."
            )
    if c.global_layers is not None:
        alone = c.global_every is None
        require(c, "global_every", alone, "None with transformer.global_layers")
        inside = all(0 <= layer < c.num_layers for layer in c.global_layers)
        bounds = f"layers from 0 to transformer.num_layers - 1 = {c.num_layers - 1}"
        require(c, "global_layers", inside, bounds)
    clip = c.qkv_clip
    require(c, "qkv_clip", clip is None or clip > 0, "a number above 0, or None")
    require(
        c,
        "first_norm",
        c.norm_position == "pre" or c.first_norm,
        "True without transformer.norm_position = 'pre'",
    )
    if not isinstance(c.position_bias, Disentangled):
        return
    for name in ("attention_sinks", "scale_by_layer"):
        require(c, name, not getattr(c, name), "False with @disentangled()")
    if c.kv_heads != c.num_heads:
        raise UserError(
            f"transformer.num_kv_heads = {c.kv_heads}: disentangled attention needs as "
            f"many as transformer.num_heads = {c.num_heads}."
        )
    for name in ("attention_scale", "attention_softcap"):
        if getattr(c, name) is not None:
            raise UserError(
                f"transformer.{name} = {getattr(c, name)}: disentangled attention has "
                "a scale of its own and no cap; expected None."
            )


def _check_latent(c: Config) -> None:
    """Raises UserError for options that latent attention does not have."""
    if c.latent is None:
        return
    c.latent.check(c.head_width)
    usual = {"qk_norm": False, "qkv_clip": None, "attention_sinks": False}
    usual |= {"scale_by_layer": False, "position_bias": None, "key_bias": True}
    for name, value in usual.items():
        fits = getattr(c, name) == value
        require(c, name, fits, f"{value} with transformer.latent")
    fits = c.kv_heads == c.num_heads
    require(c, "num_kv_heads", fits, f"{c.num_heads} with transformer.latent")
    fits = isinstance(c.rotary, Rotary)
    require(c, "rotary", fits, "@rotary() with transformer.latent")


def _check_positions(c: Config) -> None:
    """Raises UserError for rotary positions that do not fit the heads or layers."""
    if c.rotary is None:
        return
    turning = c.head_width if c.latent is None else c.latent.rotary_dim
    c.rotary.check(turning)
    local = c.rotary.local_theta if isinstance(c.rotary, Rotary) else None
    if local is not None and c.window is None:
        raise UserError(
            f"rotary.local_theta = {local} is for layers with a window; expected "
            "transformer.window, which is None, and for layers without it "
            "transformer.global_every or transformer.global_layers."
        )


def _check_experts(c: Config) -> None:
    """Raises UserError for options that experts do not have, or too many layers."""
    if c.experts is None:
        return
    if c.mlp_dropout:
        raise UserError(
            f"transformer.mlp_dropout = {c.mlp_dropout}: experts have no dropout; "
            "expected 0 with transformer.experts = @experts()."
        )
    first = c.experts.dense_layers
    if first >= c.num_layers:
        raise UserError(
            f"experts.dense_layers = {first}: expected fewer than "
            f"transformer.num_layers = {c.num_layers}."
        )
    alone = first == 0 or not c.share_layers
    require(c, "share_layers", alone, "False with experts.dense_layers above 0")


def _check_dropout(c: Config) -> None:
    """Raises UserError for dropout rates outside of [0, 1)."""
    for name in ("dropout", "attention_dropout", "mlp_dropout", "stochastic_depth"):
        require(c, name, 0 <= getattr(c, name) < 1, "0 ≤ x < 1")


def _check_remat(c: Config) -> None:
    """Raises UserError for options of rematerialization that exclude each other."""
    require(c, "scan_unroll", c.scan_unroll >= 1, "at least 1")
    for name in ("remat_save", "remat_offload"):
        require(
            c,
            name,
            c.remat != "none" or not getattr(c, name),
            "() with transformer.remat = 'none', which keeps everything",
        )
    require(
        c,
        "remat_offload",
        c.remat != "dots" or not c.remat_offload,
        "() with transformer.remat = 'dots'",
    )


def _check_quantized(c: Config) -> None:
    """Raises UserError for quantization of experts, or without qwix."""
    if c.quantized is None:
        return
    require(c, "quantized", c.experts is None, "None with transformer.experts")
    require(
        c,
        "quantized",
        is_installed(),
        "None, or qwix to be installed (extra quantized)",
    )


def _check_kernel(c: Config) -> None:
    """Raises UserError for an attention kernel that does not support the config."""
    block = c.attention_block
    if block is not None:
        fits = block > 0 and block % LANES == 0
        require(c, "attention_block", fits, f"a multiple of {LANES}")
    if c.attention in ("auto", "xla"):
        return
    what = None
    # What depends on distance alone, triton computes with the scores.
    by_distance = isinstance(c.position_bias, Alibi | RelativeBuckets)
    by_kernel = c.attention == "triton" and by_distance
    if c.position_bias is not None and not by_kernel:
        what = f"transformer.position_bias = @{c.position_bias.gin_name}()"
    elif c.attention_dropout:
        what = f"transformer.attention_dropout = {c.attention_dropout}"
    elif c.attention_sinks and c.attention != "blockwise":
        what = "transformer.attention_sinks = True"
    elif c.attention == "cudnn" and c.attention_softcap is not None:
        what = f"transformer.attention_softcap = {c.attention_softcap}"
    if what is not None:
        raise UserError(
            f"transformer.attention = {c.attention!r}: this kernel cannot compute "
            f"{what}; expected 'auto' or 'xla'."
        )
