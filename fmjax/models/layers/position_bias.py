"""Position biases of attention scores (ALiBi, T5), and sinusoidal positions."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import require


@configurable("alibi")
@dataclasses.dataclass(frozen=True)
class Alibi:
    """ALiBi: a penalty on attention scores, linear in distance (Press et al. 2022).

    In encoders it is symmetric. See `alibi`.

    Attributes:
      scaled: whether the penalty is multiplied by the scale of the scores too, as in
        Falcon.
    """

    scaled: bool = False


@configurable("relative_buckets")
@dataclasses.dataclass(frozen=True)
class RelativeBuckets:
    """Relative position bias: a learned number per head and bucket of distance (T5).

    See `relative_bucket`; Raffel et al. 2020, section 2.1.

    Attributes:
      number: number of buckets; in encoders each direction has half of them.
      max_distance: distances from this on share the last bucket.
      per_layer: whether each layer has numbers of its own (UMT5, Chung et al. 2023), or
        all have the same.
    """

    number: int = 32
    max_distance: int = 128
    per_layer: bool = False

    def __post_init__(self):
        check_buckets(self, "number")


@configurable("relative_grid")
@dataclasses.dataclass(frozen=True)
class RelativeGrid:
    """Relative position bias of patches: a learned number per head and displacement.

    See `fmjax.models.layers.patch_grid`; BEiT (Bao et al. 2022).

    Attributes:
      per_layer: whether each layer has numbers of its own, or all have the same.
    """

    per_layer: bool = True


def check_buckets(config, field: str) -> None:
    """Raises a UserError for an invalid number of buckets or maximum distance.

    Args:
      config: of relative positions, with a `max_distance`.
      field: name of its field for the number of buckets.
    """
    buckets, farthest = getattr(config, field), config.max_distance
    require(
        config,
        field,
        buckets >= 4 and buckets % 2 == 0,
        "an even number of at least 4",
    )
    require(
        config,
        "max_distance",
        farthest is None or farthest > buckets // 2,
        f"more than half of {config.gin_name}.{field} = {buckets}",
    )


def sinusoids(
    positions: Int[Array, "B T"], width: int, interleaved: bool, inclusive: bool = False
) -> Float[Array, "B T D"]:
    """Sinusoidal positions, float32 (Vaswani et al. 2017, section 3.5).

    Args:
      positions: of each token.
      width: D; pair i of the ceil(D/2) pairs has the frequency 10000^(-2i/D).
      interleaved: whether sine and cosine of a pair are adjacent, as in the paper;
        otherwise all sines come first, as in Marian.
      inclusive: whether pair i of the n = floor(D/2) pairs has the frequency
        10000^(-i/(n-1)) instead, as in tensor2tensor and fairseq, and the last feature
        of an odd width is zero.
    """
    if inclusive:
        pairs = width // 2
        exponent = -np.arange(pairs) / max(pairs - 1, 1)
        angle = positions[..., None] * (10000.0**exponent).astype(np.float32)
        halves = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        return jnp.pad(halves, ((0, 0), (0, 0), (0, width % 2)))
    frequency = 10000.0 ** (-2 * jnp.arange((width + 1) // 2) / width)
    angle = positions[..., None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)[..., : width // 2]
    if not interleaved:
        return jnp.concatenate([sin, cos], axis=-1)
    both = jnp.zeros((*positions.shape, width), jnp.float32)
    return both.at[..., 0::2].set(sin).at[..., 1::2].set(cos)


def alibi_slopes(num_heads: int) -> Float[np.ndarray, " H"]:
    """ALiBi's slope of each head (Press et al. 2022).

    For H a power of two, the geometric sequence 2^(-8/H), 2^(-16/H), …; for another H,
    the sequence for the next lower power n, then every other slope of that for 2n.
    """
    n = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / n) for i in range(n)]
    slopes += [2 ** (-4 * (2 * i + 1) / n) for i in range(num_heads - n)]
    return np.array(slopes, np.float32)


def alibi(
    num_heads: int, queries: Int[Array, "#B T"], keys: Int[Array, "#B S"]
) -> Float[Array, "#B H T S"]:
    """ALiBi's bias: -slope · |query position - key position| for each head."""
    distance = jnp.abs(queries[:, None, :, None] - keys[:, None, None, :])
    return -alibi_slopes(num_heads)[:, None, None] * distance.astype(jnp.float32)


def relative_bucket(
    offset: Int[Array, "..."], num_buckets: int, max_distance: int, causal: bool
) -> Int[Array, "..."]:
    """T5's bucket of key position - query position (Raffel et al. 2020, section 2.1).

    Small offsets have one bucket each; larger ones share buckets of logarithmically
    increasing width up to max_distance. Without `causal` each sign has half of the
    buckets.
    """
    bucket = jnp.zeros_like(offset)
    if causal:
        distance = jnp.maximum(-offset, 0)
    else:
        num_buckets //= 2
        bucket = jnp.where(offset > 0, num_buckets, 0)
        distance = jnp.abs(offset)
    exact = num_buckets // 2
    ratio = jnp.maximum(distance, 1).astype(jnp.float32) / exact
    far = jnp.log(ratio) / math.log(max_distance / exact) * (num_buckets - exact)
    far = jnp.minimum(exact + far.astype(jnp.int32), num_buckets - 1)
    return bucket + jnp.where(distance < exact, distance, far)
