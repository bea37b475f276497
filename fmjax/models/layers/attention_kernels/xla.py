"""Attention compiled by XLA from plain operations: full scores, all options."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.models.layers.dropout import dropout


def refusal(call: AttentionCall) -> str | None:
    """None: this kernel supports every call."""
    del call
    return None


def attention(call: AttentionCall) -> Float[Array, "B T H K"]:
    """The output of attention, from weights [B, H, T, S] in float32."""
    B, T, H, K = call.q.shape
    S, G = call.k.shape[1:3]
    v = jnp.swapaxes(call.v, 1, 2)
    weights = dropout(attention_weights(call), call.dropout_rate, call.keys)
    weights = weights.astype(v.dtype).reshape(B, G, H // G * T, S)
    out = jnp.einsum("bgts,bgsk->bgtk", weights, v)
    return jnp.swapaxes(out.reshape(B, H, T, K), 1, 2)


def attention_weights(call: AttentionCall) -> Float[Array, "B H T S"]:
    """The softmax over keys, float32, without dropout; values are not read."""
    B, T, H, K = call.q.shape
    S, G = call.k.shape[1:3]
    # Heads first, with query heads that share keys concatenated along T: XLA's CPU
    # backend does not turn products with more axes into matrix products by itself.
    q, k = (jnp.swapaxes(x, 1, 2) for x in (call.q * call.scale, call.k))
    q = q.reshape(B, G, H // G * T, K)
    scores = jnp.einsum("bgtk,bgsk->bgts", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(B, H, T, S)
    if call.softcap is not None:
        scores = call.softcap * jnp.tanh(scores / call.softcap)
    if call.bias is not None:
        scores = scores + call.bias_array
    array = call.mask.to_array(T, S)
    if array is not None:
        scores = jnp.where(array[:, None], scores, jnp.finfo(jnp.float32).min)
    if call.sinks is None:
        return jax.nn.softmax(scores, axis=-1)
    sinks = call.sinks.astype(jnp.float32)[None, :, None, None]
    highest = jax.lax.stop_gradient(jnp.maximum(scores.max(-1, keepdims=True), sinks))
    weights = jnp.exp(scores - highest)
    return weights / (weights.sum(-1, keepdims=True) + jnp.exp(sinks - highest))
