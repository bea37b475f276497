"""Masked autoencoding of images (MAE, He et al. 2022)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.contracts import ReconstructsPatches, check_model
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.patches import grid_of, pair, to_images, to_patches
from fmjax.objectives.fit import check_images, check_names
from fmjax.objectives.objective import ReconstructionObjective
from fmjax.objectives.terms import Batch, LossOutput, RowShapes, Term

# Added to the variance of a patch, as in the authors' code.
_EPSILON = 1e-6


@configurable("masked_autoencoding")
@dataclasses.dataclass(frozen=True)
class MaskedAutoencoding(ReconstructionObjective):
    """Masked autoencoding: mean squared error of the pixels of masked patches.

    Attributes:
      model: reconstructs images from their visible patches, such as `mae`.
      mask_ratio: share of an image's patches that are masked.
      normalize_pixels: whether the targets of each patch are normalized by its mean and
        standard deviation.
    """

    model: nn.Module
    mask_ratio: float = 0.75
    normalize_pixels: bool = True

    unit = "images"

    def __post_init__(self):
        check_model(
            self,
            ReconstructsPatches,
            "a model that reconstructs patches, such as @mae()",
        )
        require(self, "mask_ratio", 0 <= self.mask_ratio < 1, "0 ≤ x < 1")

    def num_visible(self, patches: int) -> int:
        """The number of visible patches of an image of `patches` patches."""
        return int(patches * (1 - self.mask_ratio))

    def init(self, rng: Key[Array, ""]) -> dict:
        """Boxed variables of the model."""
        shape = (1, *pair(self.model.image_size), self.model.channels)
        return self.model.init(rng, jnp.zeros(shape))

    def check(self, rows: RowShapes, vocab_size: int) -> None:
        """Raises a UserError where the model cannot take such rows.

        Args:
          rows: the shape of each array of a row.
          vocab_size: of the data; ignored.
        """
        del vocab_size
        check_names(self, ("images", "weights"), ("labels",), rows)
        self._check_patches(rows)

    def _check_patches(self, rows: RowShapes) -> None:
        check_images(self.model, rows["images"])
        height, width = self.model.grid
        if not 0 < self.num_visible(height * width) < height * width:
            raise UserError(
                f"{self.gin_name}.mask_ratio = {self.mask_ratio} hides none or all of "
                f"{height * width} patches."
            )

    def train_flops_per_row(self, params, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step for an image."""
        del rows
        height, width = self.model.grid
        return self.model.train_flops_per_image(
            params, self.num_visible(height * width)
        )

    def loss(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> LossOutput:
        """The loss term of a batch.

        Args:
          variables: {"params": …}.
          batch: images float32 [B, height, width, C], weights float32 [B].
          rng: one key per example for masks and dropout; None in evaluation, where an
            image's mask is seeded by its pixels.

        Returns:
          Term "squared_error"; no metrics.
        """
        visible = self.visible(batch["images"], rng)
        painted = self._paint(variables, batch, visible, rng)
        error = self._squared_error(painted, batch, visible)
        return LossOutput({"squared_error": error}, {})

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weight of the term: the number of images, by their weights."""
        return {"squared_error": batch["weights"].sum()}

    def _paint(
        self, variables: dict, batch: Batch, visible: Array, keys: Keys
    ) -> Float[Array, "B N P"]:
        return self.model.apply(variables, batch["images"], visible, keys=keys)[
            "logits"
        ]

    def _squared_error(self, painted: Array, batch: Batch, visible: Array) -> Term:
        targets, _, _ = self._scaled(batch["images"])
        errors = ((painted - targets) ** 2).mean(-1)
        hidden = ~_seen(visible, errors.shape[1])
        losses = (errors * hidden).sum(-1) / hidden.sum(-1)
        weights = batch["weights"]
        return Term((losses * weights).sum(), weights.sum())

    def visible(
        self, images: Float[Array, "B height width C"], keys: Keys
    ) -> Int[Array, "B K"]:
        """Indices of the visible patches, in order."""
        height, width = grid_of(images.shape[1:3], pair(self.model.patch_size))
        if keys is None:
            keys = keys_of(images)
        keys = fold_keys(keys, 2**31)
        shuffled = jax.vmap(lambda key: jax.random.permutation(key, height * width))
        return jnp.sort(shuffled(keys)[:, : self.num_visible(height * width)], axis=-1)

    def pictures(
        self, variables: dict, batch: Batch
    ) -> Float[Array, "B 3 height width C"]:
        """Each image, its visible patches (0 elsewhere), and its reconstruction.

        The reconstruction shows visible patches unchanged. With normalize_pixels,
        predicted patches get the mean and standard deviation of the true patch, as in
        the paper's figures.
        """
        images = batch["images"]
        visible = self.visible(images, None)
        painted = self._paint(variables, batch, visible, None)
        _, mean, deviation = self._scaled(images)
        painted = painted * deviation + mean
        patch = pair(self.model.patch_size)
        true = to_patches(images, patch)
        seen = _seen(visible, true.shape[1])[..., None]
        shown = (true, jnp.where(seen, true, 0.0), jnp.where(seen, true, painted))
        grid = grid_of(images.shape[1:3], patch)
        return jnp.stack([to_images(x, grid, patch) for x in shown], axis=1)

    def _scaled(self, images: Array) -> tuple[Array, Array | float, Array | float]:
        """Targets, and the mean and standard deviation that normalize them."""
        patches = to_patches(images, pair(self.model.patch_size))
        if not self.normalize_pixels:
            return patches, 0.0, 1.0
        mean = patches.mean(-1, keepdims=True)
        deviation = jnp.sqrt(patches.var(-1, keepdims=True, ddof=1) + _EPSILON)
        return (patches - mean) / deviation, mean, deviation


def keys_of(images: Float[Array, "B height width C"]) -> Key[Array, " B"]:
    """One random key per image, seeded by its pixels."""
    # Integers, whose sum does not depend on the order, so it is the same on every mesh.
    bits = jax.lax.bitcast_convert_type(images.astype(jnp.float32), jnp.uint32)
    seeds = bits.sum((1, 2, 3), dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), seeds)


def _seen(visible: Int[Array, "B K"], patches: int) -> Array:
    """True for visible patches, [B, N]."""
    return (visible[:, None, :] == jnp.arange(patches)[:, None]).any(-1)
