"""Disentangled attention (DeBERTa, He et al. 2021): content and relative position."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.layers.position_bias import check_buckets


@configurable("disentangled")
@dataclasses.dataclass(frozen=True)
class Disentangled:
    """Learned vectors of relative positions, which attention reads beside the content.

    Attributes:
      buckets: buckets of relative positions; there are twice as many vectors, half of
        them for each direction.
      max_distance: the distance that the last bucket begins at (DeBERTa-v2); None gives
        every distance below `buckets` its own (DeBERTa).
    """

    buckets: int = 32
    max_distance: int | None = 128

    def __post_init__(self):
        check_buckets(self, "buckets")


def check_decoder(position_bias: object, stack: str) -> None:
    """Raises a UserError for a decoder with disentangled attention.

    Args:
      position_bias: of the decoder's `TransformerConfig`.
      stack: the field that holds it, such as "seq2seq.decoder".
    """
    if isinstance(position_bias, Disentangled):
        raise UserError(
            f"{stack}: transformer.position_bias = @disentangled() is for encoders; a "
            "key-value cache cannot hold it."
        )


def log_bucket(
    offset: Int[Array, "..."], num_buckets: int, max_distance: int
) -> Int[Array, "..."]:
    """Query minus key position, logarithmic past num_buckets / 2 (DeBERTa-v2).

    Odd: the bucket of -x is minus that of x. The result lies within ±(num_buckets - 1)
    for offsets within ±(max_distance - 1).
    """
    middle = num_buckets // 2
    distance = jnp.abs(offset)
    ratio = jnp.maximum(distance, middle).astype(jnp.float32) / middle
    share = jnp.log(ratio) / math.log((max_distance - 1) / middle)
    far = jnp.ceil(share * (middle - 1)).astype(jnp.int32) + middle
    return jnp.where(distance <= middle, offset, jnp.sign(offset) * far)


def disentangled_scores(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    relative_q: Float[Array, "P H K"],
    relative_k: Float[Array, "P H K"],
    relative: Int[Array, "#B T S"],
) -> Float[Array, "B H T S"]:
    """Content to position plus position to content: q_i · k^r_δ + k_j · q^r_δ.

    Args:
      q: queries of the content.
      k: keys of the content.
      relative_q: queries of the P relative positions.
      relative_k: keys of the same.
      relative: δ, the row of each query's offset from each key, 0 … P - 1.

    The paper's equation 4 takes δ(j, i) for the second part; with offsets of the other
    sign mirrored, as DeBERTa-v2 does it, that is the same row.
    """
    f32 = jnp.float32
    at = relative[:, None]
    to_position = jnp.einsum(
        "bthk,phk->bhtp", q, relative_k, preferred_element_type=f32
    )
    from_position = jnp.einsum(
        "bshk,phk->bhsp", k, relative_q, preferred_element_type=f32
    )
    c2p = jnp.take_along_axis(to_position, at, axis=-1)
    p2c = jnp.take_along_axis(from_position, at.swapaxes(-1, -2), axis=-1)
    return c2p + p2c.swapaxes(-1, -2)
