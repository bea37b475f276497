"""Perturbations of an objective's inputs that raise its loss: norms, steps, bounds.

Perturbed are the word vectors of texts, or the pixels of images. Each input of words of
a model, such as those of an encoder and of a decoder, has a perturbation of its own.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from fmjax.errors import UserError
from fmjax.models.layers.dropout import fold_keys
from fmjax.models.layers.perturbation import recorded_words, with_perturbation
from fmjax.objectives.objective import Objective
from fmjax.objectives.terms import Batch

# Perturbations by input.
Deltas = dict[str, Array]
Norm = Literal["l2", "linf"]
Per = Literal["row", "token"]
# Normalized values of black and of white, of each channel.
PixelRange = tuple[tuple[float, ...], tuple[float, ...]]

IMAGES = "images"


class Input(NamedTuple):
    """What may be perturbed.

    Attributes:
      shape: of the array: [B, T, D], or [B, height, width, C] of images.
      mask: bool, without the last axis; False for padding.
      bounds: the least and the largest perturbation of each entry, arrays of `shape`,
        with which pixels are black and white; None for no bounds.
    """

    shape: tuple[int, ...]
    mask: Array
    bounds: tuple[Array, Array] | None = None


def find_inputs(
    objective: Objective,
    variables: dict,
    batch: Batch,
    rng: Key[Array, " B"] | None,
    pixels: PixelRange | None = None,
) -> dict[str, Input]:
    """The inputs of words that the loss reads, else its images.

    The loss is traced for them; what is computed for it alone, XLA removes.

    Args:
      objective: whose loss it is.
      variables: {"params": …, other collections}.
      batch: of the loss.
      rng: one key per row, or None.
      pixels: the range of the batch's images; None for no bounds.

    Raises:
      UserError: there are neither.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def masks(variables, batch, rng):
        with recorded_words() as found:
            objective.loss(variables, batch, rng)
        shapes.update({path: words.shape for path, words in found.items()})
        return {path: words.mask for path, words in found.items()}

    found = masks(variables, batch, rng)
    if not found and IMAGES in batch:
        images = batch[IMAGES]
        every, bounds = jnp.ones(images.shape[:-1], bool), None
        if pixels is not None:
            # A pixel that is out of the range, such as noise, moves no further out.
            black, white = (jnp.asarray(value, images.dtype) for value in pixels)
            bounds = jnp.minimum(black - images, 0), jnp.maximum(white - images, 0)
        return {IMAGES: Input(images.shape, every, bounds)}
    if not found:
        raise UserError(
            f"experiment.objective = @{objective.gin_name}() reads no vectors of words "
            "and no images that could be perturbed; expected a language model or "
            "@classification()."
        )
    return {path: Input(shapes[path], mask) for path, mask in found.items()}


def perturb(variables: dict, batch: Batch, deltas: Deltas) -> tuple[dict, Batch]:
    """Variables and a batch with which the loss is that of perturbed inputs."""
    if IMAGES in deltas:
        return variables, batch | {IMAGES: batch[IMAGES] + deltas[IMAGES]}
    return with_perturbation(variables, deltas), batch


def no_perturbation(inputs: Mapping[str, Input]) -> Deltas:
    """Zeros, in the sharding of the batch."""
    return {path: _of_batch(jnp.zeros(x.shape)) for path, x in inputs.items()}


def random_perturbation(
    inputs: Mapping[str, Input], keys: Key[Array, " B"], size: float, norm: Norm
) -> Deltas:
    """Uniform noise within the bounds, zero for padding.

    With "l2" it is U(-1, 1) · size / √(T · D), where T counts tokens that are not
    padding (FreeLB, Zhu et al. 2020, algorithm 1); with "linf" U(-1, 1) · size.

    Args:
      inputs: to perturb.
      keys: one per row.
      size: of the noise.
      norm: which of both.
    """
    deltas = {}
    for number, (path, each) in enumerate(inputs.items()):
        keys_here = fold_keys(keys, number)
        noise = jax.vmap(
            lambda key, shape=each.shape[1:]: jax.random.uniform(
                key, shape, minval=-1.0, maxval=1.0
            )
        )(keys_here)
        scale = size
        if norm == "l2":
            tokens = each.mask.sum(tuple(range(1, each.mask.ndim)), keepdims=True)
            entries = jnp.maximum(tokens * each.shape[-1], 1)[..., None]
            scale = size / jnp.sqrt(entries)
        deltas[path] = _of_batch(jnp.where(each.mask[..., None], noise * scale, 0.0))
    return within(deltas, inputs)


def within(deltas: Deltas, inputs: Mapping[str, Input]) -> Deltas:
    """The nearest perturbations within the bounds of pixels, of no larger norm."""
    found = {}
    for path, x in deltas.items():
        bounds = inputs[path].bounds
        found[path] = x if bounds is None else jnp.clip(x, *bounds)
    return found


def sizes(x: Array, norm: Norm, per: Per) -> Array:
    """Norms of a perturbation, of each row or token, with axes of size 1."""
    axes = (x.ndim - 1,) if per == "token" else tuple(range(1, x.ndim))
    if norm == "linf":
        return jnp.abs(x).max(axes, keepdims=True)
    # Squares of a small gradient would underflow.
    largest = jnp.abs(x).max(axes, keepdims=True)
    scaled = x / jnp.where(largest > 0, largest, 1.0)
    return largest * jnp.sqrt(jnp.square(scaled).sum(axes, keepdims=True))


def ascent(gradients: Deltas, norm: Norm, per: Per) -> Deltas:
    """The steps of norm 1 that raise a linear loss most; zero where it is flat."""
    if norm == "linf":
        return jax.tree.map(jnp.sign, gradients)
    found = {}
    for path, g in gradients.items():
        size = sizes(g, norm, per)
        found[path] = jnp.where(size > 0, g / jnp.where(size > 0, size, 1.0), 0.0)
    return found


def project(deltas: Deltas, radius: float, norm: Norm, per: Per) -> Deltas:
    """The nearest perturbations of a norm of at most `radius`."""
    if norm == "linf":
        return jax.tree.map(lambda x: jnp.clip(x, -radius, radius), deltas)
    found = {}
    for path, x in deltas.items():
        size = sizes(x, norm, per)
        found[path] = x * jnp.where(
            size > radius, radius / jnp.maximum(size, radius), 1
        )
    return found


def _of_batch(x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    return nn.with_logical_constraint(x, ("batch",) + (None,) * (x.ndim - 1))
