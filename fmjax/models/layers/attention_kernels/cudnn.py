"""cuDNN's flash attention, on NVIDIA GPUs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.sharding.platform import device_kind

_HOPPER_AND_LATER = ("H100", "H200", "H20", "GH200", "B200", "B300")


def refusal(call: AttentionCall) -> str | None:
    """Why cuDNN does not support the call; None if it does."""
    K = call.q.shape[-1]
    if call.unusual():
        return call.unusual()
    if call.softcap is not None:
        return f"transformer.attention_softcap = {call.softcap}"
    if call.q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"its inputs are {call.q.dtype}, not bfloat16 or float16"
    for length in (call.q.shape[1], call.k.shape[1]):
        if length % 2:
            # As of ViT's patches and class token; JAX raises in the backward pass.
            return f"rows of an odd length ({length}) have no gradient"
    widest = 256 if any(name in device_kind() for name in _HOPPER_AND_LATER) else 128
    if K % 8 or K > widest:
        return f"heads are {K} wide, not a multiple of 8 up to {widest}"
    return None


def needs_array(call: AttentionCall) -> bool:
    """Whether cuDNN takes the mask only as an array [T, S].

    Causal masks and causal windows it takes as they are. Of segments and padding it
    takes only lengths, and they cannot always be expressed as lengths.
    """
    mask = call.mask
    none = mask.only_distance and not mask.causal and mask.window is None
    return not none and not _structured(call)


def _structured(call: AttentionCall) -> bool:
    # cuDNN counts a window from the key at the query's index, so T must equal S.
    square = call.q.shape[1] == call.k.shape[1]
    return call.mask.only_distance and call.mask.causal and square


def attention(call: AttentionCall) -> Float[Array, "B T H K"]:
    """The output of attention, with a mask [T, S] if `needs_array`."""
    mask, T, S = call.mask, call.q.shape[1], call.k.shape[1]
    structured = _structured(call)
    array = None if structured else mask.to_array(T, S)
    window = mask.window if structured else None
    return jax.nn.dot_product_attention(
        call.q,
        call.k,
        call.v,
        mask=None if array is None else array[:, None],
        scale=call.scale,
        is_causal=structured,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
