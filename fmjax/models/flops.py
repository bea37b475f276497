"""Matrix FLOPs of training, by formula (PaLM, Chowdhery et al. 2022, appendix B)."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import jax

from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.parameter_paths import SHARED

# Looked up by row, not multiplied.
_TABLES = ("table", "relative_vectors")
# Of a mixture of experts, what every token is multiplied with.
_OF_ALL = ("router", "router_bias", "choice_bias", "shared_gate")
_visible_keys_alone = contextvars.ContextVar("visible_keys_alone", default=False)


@contextlib.contextmanager
def visible_keys_alone() -> Iterator[None]:
    """Context manager: causal attention counts only the keys that a query may see.

    This is the other convention of utilization (Llama 3, Megatron-LM): about half of a
    sequence, where PaLM's counts all of it.
    """
    token = _visible_keys_alone.set(True)
    try:
        yield
    finally:
        _visible_keys_alone.reset(token)


def matmul_parameters(params, config: TransformerConfig) -> float:
    """How many weights each token is multiplied with, once for every product.

    Tables that are only looked up count as none, experts by the share that a token
    visits, and a layer that all share once for each.

    Args:
      params: parameters, or their shapes.
      config: of the stack in them.
    """
    visited = 1.0
    if config.experts is not None:
        visited = config.experts.per_token / config.experts.number
    count = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if names[-1] in _TABLES:
            continue
        expert = len(names) > 1 and names[-2] == "mlp" and names[-1] not in _OF_ALL
        expert = expert and "dense" not in names  # Layers before those of experts.
        layers = config.num_layers if SHARED in names else 1
        count += layers * leaf.size * (visited if expert else 1.0)
    return count


def attention_flops(
    config: TransformerConfig,
    length: float,
    kind: Literal["causal", "full", "cross"] = "causal",
) -> float:
    """Training FLOPs of all layers' scores and sums for a token of `length` others.

    Each token is counted as seeing all of them, causal or not, as in the paper (inside
    `visible_keys_alone`, those before it and itself); in layers with a window of w,
    min(w, length) of them, and min(2 w - 1, length) in "full" attention, where windows
    reach to both sides.

    Args:
      config: of the stack.
      length: keys of a sequence.
      kind: what the attention sees; windows are not for "cross" attention.
    """
    seen = [length] * config.num_layers
    if config.window is not None and kind != "cross":
        width = config.window if kind == "causal" else 2 * config.window - 1
        seen = [
            length if config.is_global(layer) else min(width, length)
            for layer in range(config.num_layers)
        ]
    if kind == "causal" and _visible_keys_alone.get():
        # The mean of min(t, width) over the positions t = 1 … length.
        seen = [width - width * (width - 1) / (2 * length) for width in seen]
    width = config.head_width
    if config.latent is not None:
        width = (width + config.latent.value_dim) / 2
    return 12.0 * config.num_heads * width * sum(seen)
