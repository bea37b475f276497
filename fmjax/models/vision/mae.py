"""Masked autoencoders of images (He et al. 2022)."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fmjax.configurable import configurable
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.layers.attention_mask import AttentionMask
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.image_positions import (
    Grid,
    PatchAxis,
    resize_positions,
    sincos_2d,
)
from fmjax.models.layers.logical_axes import constrain, normal_init
from fmjax.models.layers.patches import check_image_sizes, grid_of, pair
from fmjax.models.layers.transformer import Context, Stack
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.vit import ViT


@configurable("mae")
class MAE(nn.Module):
    """An encoder of visible patches, and a small decoder that reconstructs all patches.

    Attributes:
      encoder: sizes and choices of the encoder's stack.
      decoder: those of the decoder's stack.
      image_size: height and width in pixels.
      patch_size: height and width of a patch in pixels.
      channels: channels of a pixel.
      positions: of both stacks, as in `ViT`; the paper has "sincos".
    """

    encoder: TransformerConfig
    decoder: TransformerConfig
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    channels: int = 3
    positions: Literal["learned", "sincos"] = "sincos"

    def __post_init__(self):
        check_image_sizes(self)
        super().__post_init__()

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches of an image of image_size."""
        return grid_of(pair(self.image_size), pair(self.patch_size))

    def setup(self):
        """Declares the submodules."""
        c = self.decoder
        D, std, dtype = c.embed_dim, c.init_std, c.compute_dtype
        self.vit = ViT(
            self.encoder,
            self.image_size,
            self.patch_size,
            self.channels,
            positions=self.positions,
        )
        self.into_decoder = Dense(D, ("embed", None), True, std, dtype)
        self.mask_token = self.param("mask_token", normal_init(std, "norm"), (D,))
        if self.positions == "learned":
            axis = PatchAxis(self.grid, prefix=1)
            init = normal_init(std, axis, "embed")
            shape = (axis.rows, D)
            self.decoder_positions = self.param("decoder_positions", init, shape)
        self.decoder_stack = Stack(c)
        height, width = pair(self.patch_size)
        pixels = height * width * self.channels
        self.to_pixels = Dense(pixels, ("embed", None), True, std, dtype)

    def __call__(
        self,
        images: Float[Array, "B height width C"],
        visible: Int[Array, "B K"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Reconstructs images from their visible patches.

        Args:
          images: normalized.
          visible: indices of the visible patches, row by row from 0; None for all.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return the encoder's.

        Returns:
          hidden: [B, 1 + K, D] of the encoder: the class token, then visible patches;
          pooled: [B, D], the class token's; logits: float32 [B, N, P], pixels of every
          patch, P = patch height · width · C; hidden_states: [layers + 1, B, 1 + K, D].
        """
        out = self.hidden(images, visible, keys, hidden_states)
        grid = grid_of(images.shape[1:3], pair(self.patch_size))
        keys = fold_keys(keys, self.encoder.num_layers + 1)
        return out | {"logits": self.decode(out["hidden"], visible, grid, keys)}

    def hidden(
        self,
        images: Float[Array, "B height width C"],
        visible: Int[Array, "B K"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """The encoder; arguments as in `__call__`."""
        return self.vit.encode(
            self._visible_patches(images, visible), keys, hidden_states
        )

    def decode(
        self,
        hidden: Float[Array, "B seen D"],
        visible: Int[Array, "B K"] | None,
        grid: Grid,
        keys: Keys = None,
    ) -> Float[Array, "B N P"]:
        """Pixels of every patch of a grid, from the encoder's output."""
        x = self._decoder_input(self.into_decoder(hidden), visible, grid)
        context = Context(jnp.arange(x.shape[1])[None], AttentionMask(), keys=keys)
        return self._pixels(self.decoder_stack(x, context)["hidden"], grid)

    def _visible_patches(
        self, images: Array, visible: Array | None
    ) -> Float[Array, "B K D"]:
        """Vectors of the visible patches."""
        patches = self.vit.patches(images)
        if visible is None:
            return patches
        patches = jnp.take_along_axis(patches, visible[..., None], axis=1)
        return constrain(patches, "batch", "length", "act_embed")

    def _decoder_input(
        self, x: Float[Array, "B seen E"], visible: Array | None, grid: Grid
    ) -> Float[Array, "B T E"]:
        """The decoder's input: all patches in order, the mask token for hidden ones."""
        first, patches = x[:, :1], x[:, 1:]
        if visible is not None:
            N = grid[0] * grid[1]
            # The gradient of a one-hot product is faster than that of a scatter.
            at = (visible[:, None, :] == jnp.arange(N)[:, None]).astype(x.dtype)
            seen = at.sum(-1, keepdims=True)
            patches = jnp.einsum("bnk,bkd->bnd", at, patches)
            patches = patches + (1 - seen) * self.mask_token.astype(x.dtype)
        x = jnp.concatenate([first, patches], axis=1)
        x = x + self._decoder_positions(grid).astype(x.dtype)
        return constrain(x, "batch", "length", "act_embed")

    def _pixels(self, x: Float[Array, "B T E"], grid: Grid) -> Float[Array, "B N P"]:
        """Pixels of the patches, which follow the class token."""
        patches = self.to_pixels(x[:, 1 : 1 + grid[0] * grid[1]])
        return patches.astype(jnp.float32)

    def _decoder_positions(self, grid: Grid) -> Float[Array, "T D"]:
        if self.positions == "learned":
            return resize_positions(self.decoder_positions, self.grid, grid, prefix=1)
        table = sincos_2d(grid, self.decoder.embed_dim)
        return jnp.pad(table, [(1, 0), (0, 0)])

    def train_flops_per_image(
        self,
        params,
        visible: int | None = None,
        image_size: Grid | None = None,
        extra: int = 0,
    ) -> float:
        """Matrix FLOPs of a training step for each image.

        Args:
          params: the parameters, or their shapes.
          visible: number of visible patches; None for all.
          image_size: height and width in pixels; None for the model's.
          extra: number of other vectors that both stacks read.
        """
        rows, columns = grid_of(
            image_size or pair(self.image_size), pair(self.patch_size)
        )
        N = rows * columns
        K = N if visible is None else visible
        flops = 6.0 * N * params["vit"]["patches"]["kernel"].size
        flops += 6.0 * (1 + K + extra) * params["into_decoder"]["kernel"].size
        flops += 6.0 * N * params["to_pixels"]["kernel"].size
        for config, stack, tokens in (
            (self.encoder, params["vit"]["stack"], 1 + K + extra),
            (self.decoder, params["decoder_stack"], 1 + N + extra),
        ):
            each = 6.0 * matmul_parameters(stack, config)
            flops += tokens * (each + attention_flops(config, tokens, "full"))
        return flops
