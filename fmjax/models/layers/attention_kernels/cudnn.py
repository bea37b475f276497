"""cuDNN's flash attention, on NVIDIA GPUs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax.models.layers.attention_kernels.call import AttentionCall


def refusal(call: AttentionCall) -> str | None:
    """Why cuDNN cannot compute this, or None."""
    K = call.q.shape[-1]
    if call.unusual():
        return call.unusual()
    if call.softcap is not None:
        return f"transformer.attention_softcap = {call.softcap}"
    if call.q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"its inputs are {call.q.dtype}, not bfloat16 or float16"
    if K % 8 or K > 256:
        return f"heads are {K} wide, not a multiple of 8 up to 256"
    return None


def attention(call: AttentionCall) -> Float[Array, "B T H K"]:
    """The layer's output; causal masks and causal windows cost no array [T, S].

    Segments and padding do: cuDNN takes them as lengths, which need not exist for them.
    """
    mask, T, S = call.mask, call.q.shape[1], call.k.shape[1]
    # A window counts from the query's own key, which needs as many keys as queries.
    structured = mask.only_distance and mask.causal and T == S
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
