"""Scaled dot-product attention, with a kernel selected by the mesh's platform."""

import dataclasses

import jax
from jaxtyping import Array, Float

from fmjax.errors import UserError
from fmjax.models.layers.attention_kernels import (
    blockwise,
    cudnn,
    gathered_keys,
    ring,
    splash,
    triton,
    xla,
)
from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.distance_bias import DistanceBias
from fmjax.models.layers.dropout import Keys
from fmjax.models.layers.lanes import LANES
from fmjax.models.layers.logical_axes import shards
from fmjax.say_once import say_once
from fmjax.sharding.platform import platform

KERNELS = {
    "xla": xla,
    "blockwise": blockwise,
    "cudnn": cudnn,
    "splash": splash,
    "triton": triton,
}
# In the order in which they are tried; the first with sums is that of rings.
_OF_PLATFORM = {"tpu": ("splash",), "gpu": ("cudnn", "triton")}
# "blockwise" replaces "xla" for rows of more keys than this, where the float32 scores
# of one head take 16 MB.
_LONG = 2048


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    mask: AttentionMask,
    *,
    bias: Float[Array, "#B H T S"] | DistanceBias | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    implementation: str = "auto",
    context_attention: str = "auto",
    block: int | None = None,
    dropout_rate: float = 0.0,
    keys: Keys = None,
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "B T H K"]:
    """Scaled dot-product attention: softmax(scale · q k^T + bias) v.

    Each of the G key heads serves H / G query heads.

    Args:
      q: queries.
      k: keys.
      v: values.
      mask: which keys each query attends to. For a query that attends to no key the
        output is finite and differs between kernels.
      bias: added to the scores; the first axis of an array may be 1.
      scale: of the scores; None means K^(-1/2).
      softcap: scores x become softcap · tanh(x / softcap) (Gemma 2), before the bias;
        None leaves them unchanged.
      implementation: "splash" (TPUs; interpreted on CPUs), "cudnn" (NVIDIA GPUs),
        "triton" (GPUs; interpreted on CPUs), "blockwise" (any platform, memory O(T)),
        "xla" (any platform and option, memory O(T · S)), or "auto": splash on TPUs, and
        cudnn or else triton on GPUs, if they support the call without an array [T, S],
        else blockwise for long rows if it does, else xla. If the platform's first
        kernel does not, the reason is printed once to the standard error.
      context_attention: how queries meet keys if T and S are sharded over mesh.context:
        "ring" (keys travel; causal masks and none, segments, padding), "all_gather"
        (any option), or "auto": ring if it supports the call. The kernels of a ring are
        splash, triton and blockwise, those of gathered keys blockwise and xla.
      block: the most queries and keys of a block of "splash", and keys of "blockwise";
        None for as many as suit the chip.
      dropout_rate: share of the attention weights that are dropped.
      keys: one random key per example; None for no dropout.
      sinks: a score of each head that takes part in the softmax beside those of the
        keys and adds nothing to the output; None for none.

    Raises:
      UserError: the requested kernel does not support this call.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    options = (bias, scale, softcap, dropout_rate, keys, block, sinks)
    call = AttentionCall(q, k, v, mask, *options)
    if _in_parts(call):
        call = dataclasses.replace(call, bias=call.bias_array)
        return _attend_in_parts(call, implementation, context_attention)
    if implementation == "auto":
        implementation = _choose(call)
    elif reason := KERNELS[implementation].refusal(call):
        raise UserError(
            f"transformer.attention = {implementation!r} cannot be used here: "
            f"{reason}. Expected 'auto' or 'xla'."
        )
    return KERNELS[implementation].attention(call)


def _in_parts(call: AttentionCall) -> bool:
    """Whether the call is over sequences that devices have a part of each."""
    devices = shards("length")
    lengths = call.q.shape[1], call.k.shape[1]
    cached = call.mask.query_positions is not None
    # Odd lengths are those of initializers and of poolers, which XLA divides.
    return devices > 1 and not cached and not any(n % devices for n in lengths)


def _attend_in_parts(
    call: AttentionCall, implementation: str, how: str
) -> Float[Array, "B T H K"]:
    reason = ring.refusal(call)
    if implementation == "xla":
        reason = reason or "transformer.attention = 'xla'"
    if how == "ring" and reason:
        raise UserError(
            f"transformer.context_attention = 'ring' cannot be used here: {reason}. "
            "Expected 'auto' or 'all_gather'."
        )
    if how != "all_gather" and reason is None:
        return ring.attention(call, KERNELS[_kernel_of_ring(call, implementation)])
    if implementation in ("splash", "cudnn", "triton"):
        raise UserError(
            f"transformer.attention = {implementation!r} cannot be used with gathered "
            f"keys over mesh.context ({reason or 'transformer.context_attention'}). "
            "Expected 'auto', 'blockwise' or 'xla'."
        )
    long = call.k.shape[1] > _LONG and blockwise.refusal(call) is None
    chosen = "blockwise" if long or implementation == "blockwise" else "xla"
    if reason and how == "auto" and implementation == "auto":
        _say(f"attention over mesh.context gathers the keys, without a ring: {reason}")
    return gathered_keys.attention(call, KERNELS[chosen])


def _kernel_of_ring(call: AttentionCall, implementation: str) -> str:
    """The kernel of each device for the keys that pass by."""
    reason = None
    if implementation == "cudnn":
        reason = "it does not give its sums"
    elif implementation != "auto":
        reason = _refused_piece(call, implementation)
    if reason:
        raise UserError(
            f"transformer.attention = {implementation!r} cannot be used in a ring over "
            f"mesh.context: {reason}. Expected 'auto' or 'blockwise'."
        )
    if implementation == "auto":
        implementation = "blockwise"
        if of_platform := _OF_PLATFORM.get(platform()):
            *_, preferred = of_platform
            if why := _refused_piece(call, preferred):
                _say(f"attention in the ring by 'blockwise', not {preferred!r}: {why}")
            else:
                implementation = preferred
    return implementation


def _refused_piece(call: AttentionCall, implementation: str) -> str | None:
    """Why a kernel cannot attend to the keys of a device of a ring; None if it can."""
    if implementation == "triton":
        return triton.refused_inputs(call)
    if implementation == "splash":
        # In zig-zag order a visit may take half of the queries or of the keys.
        parts = shards("length") * (2 if call.mask.zigzag else 1)
        for length in (call.q.shape[1], call.k.shape[1]):
            if length // parts % LANES:
                return f"{length} / {parts} positions are no multiple of {LANES}"
        return splash.refused_platform()
    return None


def _choose(call: AttentionCall) -> str:
    """The name of the kernel for the mesh's platform."""
    of_platform = _OF_PLATFORM.get(platform(), ())
    reasons = {}
    for name in of_platform:
        reason = KERNELS[name].refusal(call)
        if reason is None and name == "cudnn" and cudnn.needs_array(call):
            reason = "segments and padding would take it an array [T, S]"
        if reason is None:
            chosen = name
            break
        reasons[name] = reason
    else:
        long = call.k.shape[1] > _LONG and blockwise.refusal(call) is None
        chosen = "blockwise" if long else "xla"
    if reasons:
        preferred = of_platform[0]
        _say(f"attention by {chosen!r}, not {preferred!r}: {reasons[preferred]}")
    return chosen


def _say(line: str) -> None:
    """Prints a line to the standard error, once, in the first process only."""
    if jax.process_index() == 0:
        say_once(line)
