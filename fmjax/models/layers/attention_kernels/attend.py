"""Scaled dot-product attention by the kernel that suits the mesh's platform."""

import sys

import jax
from jaxtyping import Array, Float

from fmjax.errors import UserError
from fmjax.models.layers.attention_kernels import blockwise, cudnn, splash, xla
from fmjax.models.layers.attention_kernels.call import AttentionCall
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.dropout import Keys
from fmjax.sharding.platform import platform

KERNELS = {"xla": xla, "blockwise": blockwise, "cudnn": cudnn, "splash": splash}
_OF_PLATFORM = {"tpu": "splash", "gpu": "cudnn"}
# Keys of a row above which "blockwise" replaces "xla": scores of one head take 16 MB in
# float32 there.
_LONG = 2048
_said: set[str] = set()


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    mask: AttentionMask,
    *,
    bias: Float[Array, "#B H T S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    implementation: str = "auto",
    dropout_rate: float = 0.0,
    keys: Keys = None,
) -> Float[Array, "B T H K"]:
    """softmax(scale · q k^T + bias) v, each of the G key heads serving H / G heads.

    Args:
      q: queries.
      k: keys.
      v: values.
      mask: which keys each query sees. Of a query that sees none the output is finite
        and differs between kernels.
      bias: added to the scores; its first axis may be 1.
      scale: of the scores; None means K^(-1/2).
      softcap: scores x become softcap · tanh(x / softcap) (Gemma 2), before the bias.
      implementation: "splash" (TPUs; interpreted on CPUs), "cudnn" (NVIDIA GPUs),
        "blockwise" (any platform, in memory O(T)), "xla" (any platform and option, in
        memory O(T · S)), or "auto": splash on TPUs and cudnn on GPUs where they can,
        else blockwise for long rows where it can, else xla. If the platform's kernel
        cannot, the reason is printed once to the standard error.
      dropout_rate: share of the attention weights that is dropped.
      keys: one key per example, or None for no dropout.

    Raises:
      UserError: if the kernel that is asked for cannot compute this.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    call = AttentionCall(q, k, v, mask, bias, scale, softcap, dropout_rate, keys)
    if implementation == "auto":
        implementation = _choose(call)
    elif reason := KERNELS[implementation].refusal(call):
        raise UserError(
            f"transformer.attention = {implementation!r} cannot be used here: "
            f"{reason}. Expected 'auto' or 'xla'."
        )
    return KERNELS[implementation].attention(call)


def _choose(call: AttentionCall) -> str:
    """The name of the kernel for the mesh's platform."""
    preferred = _OF_PLATFORM.get(platform())
    reason = preferred and KERNELS[preferred].refusal(call)
    if preferred and reason is None:
        return preferred
    long = call.k.shape[1] > _LONG and blockwise.refusal(call) is None
    chosen = "blockwise" if long else "xla"
    if preferred:
        _say(f"attention by {chosen!r}, not {preferred!r}: {reason}")
    return chosen


def _say(line: str) -> None:
    """Prints a line once in a process, and in the first process alone."""
    if line not in _said and jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
    _said.add(line)
