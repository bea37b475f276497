"""Rematerialization: which activations of a block are kept for the backward pass.

The others are computed again. Layers name their activations with `checkpoint_name`.
"""

from collections.abc import Callable
from typing import Literal

import jax

RematPolicy = Literal["none", "dots", "weights", "attention", "full"]
# "query", "key" and "value" are what attention reads, rotated; "mlp_in" and "mlp_gate"
# products of the feed-forward layer; "attention" what the backward pass of a kernel
# reads of its forward pass; "weights" every product with weights.
RematName = Literal[
    "query", "key", "value", "attention", "mlp_in", "mlp_gate", "weights"
]
_POLICIES = jax.checkpoint_policies
_KEPT = {"full": (), "attention": ("attention",), "weights": ("weights",)}


def remat_policy(
    policy: RematPolicy,
    save: tuple[RematName, ...] = (),
    offload: tuple[RematName, ...] = (),
) -> Callable[..., bool]:
    """A policy for `jax.checkpoint`.

    Args:
      policy: of `transformer.remat`, not "none".
      save: names of activations that are kept too.
      offload: names of those that are kept in the host's memory; not with "dots".
    """
    if policy == "dots":
        named = _POLICIES.save_only_these_names("attention", "weights", *save)
        return _POLICIES.save_from_both_policies(_POLICIES.dots_saveable, named)
    names = (*_KEPT[policy], *save)
    if not offload:
        return _POLICIES.save_only_these_names(*names)
    return _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[name for name in names if name not in offload],
        names_which_can_be_offloaded=list(offload),
        offload_src="device",
        offload_dst="pinned_host",
    )
