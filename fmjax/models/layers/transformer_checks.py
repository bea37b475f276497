"""Checks of a transformer's config: invalid or incompatible fields, by gin name."""

from typing import TYPE_CHECKING

from fmjax.errors import UserError, require
from fmjax.models.layers.disentangled import Disentangled
from fmjax.models.layers.lanes import LANES
from fmjax.models.layers.quantized import is_installed

if TYPE_CHECKING:
    from fmjax.models.layers.transformer_config import TransformerConfig


def check_sizes(c: "TransformerConfig") -> None:
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


def check_attention(c: "TransformerConfig") -> None:
    """Raises UserError for invalid windows and options of disentangled attention."""
    for name in ("window", "global_every"):
        value = getattr(c, name)
        require(c, name, value is None or value >= 1, "at least 1, or None")
    if c.global_every is not None and c.window is None:
        raise UserError(
            f"transformer.global_every = {c.global_every} needs transformer.window, "
            "which is None."
        )
    if not isinstance(c.position_bias, Disentangled):
        return
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


def check_positions(c: "TransformerConfig") -> None:
    """Raises UserError for rotary positions that do not fit the heads or layers."""
    if c.rotary is None:
        return
    c.rotary.check(c.head_width)
    local = c.rotary.local_theta
    if local is not None and c.global_every is None:
        raise UserError(
            f"rotary.local_theta = {local} is for layers with a window beside others "
            "without; expected transformer.global_every, which is None."
        )


def check_experts(c: "TransformerConfig") -> None:
    """Raises UserError for options that experts do not have: biases and dropout."""
    for name, without in ("bias", False), ("mlp_dropout", 0):
        if c.experts is not None and getattr(c, name):
            raise UserError(
                f"transformer.{name} = {getattr(c, name)}: experts have no offsets and "
                f"no dropout; expected {without} with transformer.experts = @experts()."
            )


def check_dropout(c: "TransformerConfig") -> None:
    """Raises UserError for dropout rates outside of [0, 1)."""
    for name in ("dropout", "attention_dropout", "mlp_dropout", "stochastic_depth"):
        require(c, name, 0 <= getattr(c, name) < 1, "0 ≤ x < 1")


def check_remat(c: "TransformerConfig") -> None:
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


def check_quantized(c: "TransformerConfig") -> None:
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


def check_kernel(c: "TransformerConfig") -> None:
    """Raises UserError for an attention kernel that does not support the config."""
    block = c.attention_block
    if block is not None:
        fits = block > 0 and block % LANES == 0
        require(c, "attention_block", fits, f"a multiple of {LANES}")
    if c.attention in ("auto", "xla"):
        return
    what = None
    if c.position_bias is not None:
        what = f"transformer.position_bias = @{c.position_bias.gin_name}()"
    elif c.attention_dropout:
        what = f"transformer.attention_dropout = {c.attention_dropout}"
    elif c.attention == "cudnn" and c.attention_softcap is not None:
        what = f"transformer.attention_softcap = {c.attention_softcap}"
    if what is not None:
        raise UserError(
            f"transformer.attention = {c.attention!r}: this kernel cannot compute "
            f"{what}; expected 'auto' or 'xla'."
        )
