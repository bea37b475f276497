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
    """Disentangled attention: learned vectors of relative positions in the scores.

    Attributes:
      buckets: buckets of relative positions in each direction; there are twice as many
        vectors.
      max_distance: the distance at which the last bucket begins, with logarithmic
        buckets (DeBERTa-v2); None for one bucket per distance below `buckets`
        (DeBERTa).
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
    """DeBERTa-v2's bucket of query minus key position.

    It is logarithmic past num_buckets / 2, and an odd function: the bucket of -x is
    minus that of x. For offsets within ±(max_distance - 1) it is within
    ±(num_buckets - 1).
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
    """Content-to-position plus position-to-content scores: q_i · k^r_δ + k_j · q^r_δ.

    The paper's equation 4 has δ(j, i) in the second term; DeBERTa-v2 mirrors offsets of
    the other sign, which gives the same index.

    Args:
      q: queries of the content.
      k: keys of the content.
      relative_q: queries of the P relative positions.
      relative_k: keys of the P relative positions.
      relative: δ, index 0 … P - 1 of the offset of each query from each key.
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
