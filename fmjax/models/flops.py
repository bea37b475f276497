"""Matrix FLOPs of training, by formula (PaLM, Chowdhery et al. 2022, appendix B)."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax

from fmjax.models.layers.transformer_config import TransformerConfig

# Looked up by row, not multiplied.
_TABLES = ("table", "relative_vectors")


def matmul_parameters(params, config: TransformerConfig) -> float:
    """How many weights each token is multiplied with, once for every product.

    Tables that are only looked up count as none, experts by the share that a token
    visits.

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
        expert = len(names) > 1 and names[-2] == "mlp" and names[-1] != "router"
        count += leaf.size * (visited if expert else 1.0)
    return count


def attention_flops(
    config: TransformerConfig,
    length: float,
    kind: Literal["causal", "full", "cross"] = "causal",
) -> float:
    """Training FLOPs of all layers' scores and sums for a token of `length` others.

    Each token is counted as seeing all of them, causal or not, as in the paper; in
    layers with a window of w, min(w, length) of them, and min(2 w - 1, length) in
    "full" attention, where windows reach to both sides.

    Args:
      config: of the stack.
      length: keys of a sequence.
      kind: what the attention sees; windows are not for "cross" attention.
    """
    seen = [length] * config.num_layers
    if config.window is not None and kind != "cross":
        width = config.window if kind == "causal" else 2 * config.window - 1
        every = config.global_every
        seen = [
            length if every and layer % every == 0 else min(width, length)
            for layer in range(1, config.num_layers + 1)
        ]
    return 12.0 * config.num_heads * config.head_width * sum(seen)


def without_frozen(flops: Callable[[Any], float], params: Any, trained: Any) -> float:
    """Training FLOPs where some parameters are frozen: these need no own gradient.

    Of the 6 FLOPs of a weight, 2 each for the forward pass, the gradient of its input
    and its own, a frozen one has 4. That nothing below the lowest trained layer needs
    the gradient of an input is not counted: the figure is then too high, by up to half.

    Args:
      flops: parameters → training FLOPs, 6 for each weight as often as it multiplies.
      params: shapes of the parameters.
      trained: a boolean for each of them.
    """
    every = flops(params)
    kept = jax.tree.map(
        lambda leaf, chosen: leaf if chosen else _Frozen(leaf.shape), params, trained
    )
    return every - (every - flops(kept)) / 3


@dataclasses.dataclass(frozen=True)
class _Frozen:
    """Stands for a parameter of some shape, and counts as no weight."""

    shape: tuple[int, ...]
    size = 0

    @property
    def ndim(self) -> int:
        return len(self.shape)
