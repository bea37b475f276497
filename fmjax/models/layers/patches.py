"""Patch embedding of images with positions, and conversion of patches to images."""

import einops
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from fmjax.errors import UserError, require
from fmjax.models.layers.dense import matmul
from fmjax.models.layers.image_positions import (
    Grid,
    Interpolation,
    PatchAxis,
    resize_positions,
    sincos_2d,
)
from fmjax.models.layers.logical_axes import constrain, normal_init, zeros_init
from fmjax.models.layers.multipliers import multiply
from fmjax.models.layers.transformer_config import TransformerConfig


def pair(size: int | tuple[int, int]) -> Grid:
    """(height, width) from a size that may be one number for both."""
    return (size, size) if isinstance(size, int) else tuple(size)


def grid_of(image: Grid, patch: Grid) -> Grid:
    """Numbers of rows and columns of patches in an image."""
    return image[0] // patch[0], image[1] // patch[1]


def to_patches(
    images: Float[Array, "B height width C"], patch: Grid
) -> Float[Array, "B N P"]:
    """Splits images into N patches, row-major; P = patch height · patch width · C."""
    pattern = "b (y h) (x w) c -> b (y x) (h w c)"
    return einops.rearrange(images, pattern, h=patch[0], w=patch[1])


def to_images(
    patches: Float[Array, "B N P"], grid: Grid, patch: Grid
) -> Float[Array, "B height width C"]:
    """The inverse of `to_patches`."""
    pattern = "b (y x) (h w c) -> b (y h) (x w) c"
    return einops.rearrange(patches, pattern, y=grid[0], h=patch[0], w=patch[1])


class PatchEmbedding(nn.Module):
    """Patch embedding: a linear projection of each patch, plus positions.

    Attributes:
      config: of the transformer that reads the result.
      grid: rows and columns of patches of learned positions.
      patch: height and width of a patch.
      channels: C.
      positions: "learned", "sincos" or "none".
      prefix: names of learned tokens before the patches; learned positions have rows
        for them, sin-cos positions are not added to them.
      registers: number of register tokens between those and the patches, which have no
        positions (Darcet et al. 2024).
      interpolation: of learned positions; see `resize_positions`.
      mask_token: whether there is a learned vector for masked patches.
      bias: whether the projection has a bias.
      owner: gin name of the model, for error messages.
    """

    config: TransformerConfig
    grid: Grid
    patch: Grid
    channels: int
    positions: str
    prefix: tuple[str, ...]
    mask_token: bool
    bias: bool
    owner: str
    registers: int = 0
    interpolation: Interpolation = "bicubic"

    def setup(self):
        """Declares the weights."""
        c = self.config
        D = c.embed_dim
        shape = (*self.patch, self.channels)
        fan_in = self.patch[0] * self.patch[1] * self.channels
        # Pixels of unit variance give vectors of unit variance, on the scale of sin-cos
        # positions.
        init = normal_init(fan_in**-0.5, "patch_y", "patch_x", "channel", "embed")
        self.kernel = self.param("kernel", init, (*shape, D))
        if self.bias:
            self.offset = self.param("bias", zeros_init("embed"), (D,))
        # The axis name of vectors, so that weight decay does not apply.
        token = normal_init(c.init_std, "norm")
        self.tokens = [self.param(name, token, (D,)) for name in self.prefix]
        if self.registers:
            init = normal_init(c.init_std, None, "norm")
            self.register_table = self.param("registers", init, (self.registers, D))
        if self.mask_token:
            self.mask_vector = self.param("mask_token", token, (D,))
        if self.positions == "learned":
            axis = PatchAxis(self.grid, len(self.prefix), self.interpolation)
            init = normal_init(c.init_std, axis, "embed")
            self.table = self.param("positions", init, (axis.rows, D))

    def __call__(
        self,
        images: Float[Array, "B height width C"],
        masked: Bool[Array, "B N"] | None = None,
    ) -> Float[Array, "B N D"]:
        """Embeds patches and adds their positions.

        Args:
          images: float32.
          masked: True for patches to replace by the mask token; None for none.
        """
        dtype = self.config.compute_dtype
        grid = self._grid(images)
        kernel = self.kernel.astype(dtype).reshape(-1, self.config.embed_dim)
        x = matmul(to_patches(images.astype(dtype), self.patch), kernel, dtype)
        if self.bias:
            x = x + self.offset.astype(dtype)
        if masked is not None:
            if not self.mask_token:
                raise UserError(f"masked: {self.owner}.mask_token = False.")
            x = jnp.where(masked[..., None], self.mask_vector.astype(dtype), x)
        if self.positions != "none":
            x = x + self.place(grid).astype(dtype)
        x = multiply(x, self.config.multipliers.embedding)
        return constrain(x, "batch", "length", "act_embed")

    def place(self, grid: Grid) -> Float[Array, "N D"]:
        """The positions of a grid's patches."""
        if self.positions == "sincos":
            return jnp.asarray(sincos_2d(grid, self.config.embed_dim))
        first = len(self.prefix)
        table = resize_positions(self.table, self.grid, grid, first, self.interpolation)
        return table[first:]

    def with_prefix(self, patches: Float[Array, "B N D"]) -> Float[Array, "B T D"]:
        """Prepends the class token and other prefix tokens, with their positions."""
        if not self.prefix:
            return patches
        first = jnp.stack(self.tokens)
        if self.positions == "learned":
            first = first + self.table[: len(self.prefix)]
        if self.registers:
            first = jnp.concatenate([first, self.register_table])
        shape = (len(patches), *first.shape)
        first = jnp.broadcast_to(first.astype(patches.dtype), shape)
        first = multiply(first, self.config.multipliers.embedding)
        joined = jnp.concatenate([first, patches], axis=1)
        return constrain(joined, "batch", "length", "act_embed")

    def _grid(self, images: Array) -> Grid:
        _, height, width, channels = images.shape
        if channels != self.channels:
            raise UserError(
                f"images: {channels} channels; expected {self.owner}.channels = "
                f"{self.channels}."
            )
        if height % self.patch[0] or width % self.patch[1]:
            raise UserError(
                f"images: {height} × {width} pixels; expected multiples of "
                f"{self.owner}.patch_size = {self.patch[0]} × {self.patch[1]}."
            )
        return grid_of((height, width), self.patch)


def check_image_sizes(model: nn.Module) -> None:
    """Raises UserError for sizes of images and patches that do not fit together."""
    name = model.gin_name
    for field in ("image_size", "patch_size"):
        size = getattr(model, field)
        holds = len(pair(size)) == 2 and min(pair(size)) >= 1
        require(model, field, holds, "a number from 1 on, or two")
    require(model, "channels", model.channels >= 1, "at least 1")
    image, patch = pair(model.image_size), pair(model.patch_size)
    if image[0] % patch[0] or image[1] % patch[1]:
        raise UserError(
            f"{name}.patch_size = {model.patch_size} does not divide "
            f"{name}.image_size = {model.image_size}."
        )
