"""Bottleneck adapters: small perceptrons in the blocks of a transformer.

A block has them under the name of a layer and a suffix. Houlsby's reads the output of
the layer, before it is added to the block's input; Pfeiffer's reads the sum of both,
normalized where the block has a norm there.
"""

from collections.abc import Callable

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.models.layers.adapters import adapter_of

# Suffixes of the names of adapters.
HOULSBY = "_houlsby"
PFEIFFER = "_pfeiffer"
_ACTIVATIONS = {HOULSBY: jax.nn.silu, PFEIFFER: jax.nn.relu}


def read_bottleneck(
    module: nn.Module,
    name: str,
    x: Float[Array, "B T D"],
    norm: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T D"] | None:
    """What a block's bottleneck adds, act(x W_down + b_down) W_up + b_up.

    Args:
      module: the block.
      name: of the layer, with a suffix.
      x: what the bottleneck reads.
      norm: that x goes through first; None for none.

    Returns:
      None where the block has no such adapter.
    """
    found = adapter_of(module, name)
    if found is None:
        return None
    own = {key: leaf.astype(x.dtype) for key, leaf in found.items()}
    if norm is not None:
        x = norm(x)
    (activation,) = (f for end, f in _ACTIVATIONS.items() if name.endswith(end))
    hidden = activation(x @ own["down"] + own["down_bias"])
    return hidden @ own["up"] + own["up_bias"]
