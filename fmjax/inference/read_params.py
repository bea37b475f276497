"""Reading saved parameters onto devices, in another dtype too."""

import types
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from fmjax.training.checkpoint.saved_state import Coder, SavedState

# Bytes of parameters that are read at once before they are cast.
_READ_BYTES = 256 << 20


def read_params(
    saved: SavedState,
    wanted: dict,
    dtype: str | None,
    coders: Mapping[str, Coder] = types.MappingProxyType({}),
) -> dict[str, jax.Array]:
    """Reads parameters by path, each array onto its devices.

    With a dtype, they are read in groups and cast on their devices, so that only one
    group at a time is held in the saved dtype. So are those that are coded, from the
    saved dtype.

    Args:
      saved: where they are.
      wanted: shapes by path.
      dtype: of the parameters; None for that in which they were saved.
      coders: of parameters that are kept as codes, by path.
    """
    if dtype is None and not coders:
        return saved.read_params(wanted)
    params = {}
    for group in _groups(wanted):
        for path, array in saved.read_params(group).items():
            if path in coders:
                params |= jax.block_until_ready(coders[path](array))
            elif dtype is None or not jnp.issubdtype(array.dtype, jnp.floating):
                params[path] = array
            else:
                params[path] = jax.block_until_ready(array.astype(jnp.dtype(dtype)))
    return params


def _groups(shapes: dict) -> Iterator[dict]:
    """Yields arrays in groups of up to `_READ_BYTES`; a larger array alone."""
    group: dict = {}
    size = 0
    for path, shape in shapes.items():
        more = shape.size * shape.dtype.itemsize
        if group and size + more > _READ_BYTES:
            yield group
            group, size = {}, 0
        group[path] = shape
        size += more
    yield group
