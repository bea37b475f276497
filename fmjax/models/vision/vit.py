"""Vision transformers: ViT (Dosovitskiy et al. 2021), DeiT, BEiT, DINOv2 and DINOv3."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.layers.attention_mask import self_attention
from fmjax.models.layers.attention_pooling import AttentionPooling, pooling_flops
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.dropout import Keys, dropout, fold_keys
from fmjax.models.layers.image_positions import Grid, Interpolation
from fmjax.models.layers.inputs import check_positions, outputs
from fmjax.models.layers.logical_axes import constrain
from fmjax.models.layers.patch_grid import PatchGrid
from fmjax.models.layers.patches import PatchEmbedding, check_image_sizes, grid_of, pair
from fmjax.models.layers.position_bias import RelativeGrid
from fmjax.models.layers.transformer import Context, Stack
from fmjax.models.layers.transformer_config import TransformerConfig

Pooling = Literal[
    "class_token", "average", "class_token_and_average", "attention", "none"
]


@configurable("vit")
class ViT(nn.Module):
    """An encoder of the patches of images, with optional heads.

    Attributes:
      transformer: sizes and choices of the stack.
      image_size: height and width in pixels that learned positions are for; for images
        of other sizes they are interpolated.
      patch_size: height and width of a patch in pixels.
      channels: channels of a pixel.
      positions: vectors added for each patch: "learned", fixed "sincos" in two
        dimensions (MoCo v3, Chen et al. 2021), or "none" with @patch_rotary() or
        @relative_grid().
      class_token: whether there is a learned class token before the patches.
      patch_bias: whether the projection of patches has a bias.
      embed_norm: whether the stack's input is normalized (CLIP, Radford et al. 2021).
      pooling: the vector of the image: that of the "class_token", the "average" of the
        patches, both concatenated (DINOv2's classifier), or "attention" pooling with a
        learned query (Zhai et al. 2022); "none" where another module pools.
      pooler: whether a dense layer with tanh follows, as in ViT's pretraining.
      num_classes: classes of a classifier; 0 for none.
      distillation_token: whether there is a second learned token, after the class token
        (DeiT, Touvron et al. 2021).
      distillation_head: whether it has a classifier of its own; the logits are then the
        mean of both.
      mask_token: whether there is a learned vector for masked patches.
      registers: number of learned register tokens between class token and patches,
        without positions (Darcet et al. 2024); the pooled vector does not read them.
      interpolation: of learned positions for images of another size; see
        `resize_positions`. Only "bicubic" without positions "learned".
      pooled_norm: whether the pooled vector is normalized in place of every token's
        (BEiT); not without pooling or with a distillation token.
    """

    transformer: TransformerConfig
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    channels: int = 3
    positions: Literal["learned", "sincos", "none"] = "learned"
    class_token: bool = True
    patch_bias: bool = True
    embed_norm: bool = False
    pooling: Pooling = "class_token"
    pooler: bool = False
    num_classes: int = 0
    distillation_token: bool = False
    distillation_head: bool = False
    mask_token: bool = False
    registers: int = 0
    interpolation: Interpolation = "bicubic"
    pooled_norm: bool = False

    def __post_init__(self):
        check_image_sizes(self)
        require(self, "num_classes", self.num_classes >= 0, "at least 0")
        if "class_token" in self.pooling and not self.class_token:
            raise UserError(
                f"vit.pooling = {self.pooling!r} needs vit.class_token, which is "
                "False; expected 'average' or 'attention'."
            )
        if self.pooling == "none" and (self.num_classes or self.pooler):
            raise UserError(
                "vit.pooling = 'none' leaves vit.num_classes = "
                f"{self.num_classes} and vit.pooler = {self.pooler} nothing to read; "
                "expected 0 and False, or another pooling."
            )
        require(self, "registers", self.registers >= 0, "at least 0")
        for field in ("distillation_token", "registers"):
            if getattr(self, field) and not self.class_token:
                raise UserError(
                    f"vit.{field} = {getattr(self, field)} needs vit.class_token, "
                    "which is False."
                )
        check_positions(self, "transformer")
        fits = self.positions == "learned" or self.interpolation == "bicubic"
        expected = "'bicubic' without vit.positions = 'learned'"
        require(self, "interpolation", fits, expected)
        # The head of a distillation token would read it without a norm.
        alone = self.pooling != "none" and not self.distillation_token
        expected = "False with vit.pooling = 'none' or vit.distillation_token"
        require(self, "pooled_norm", alone or not self.pooled_norm, expected)
        on_grid = isinstance(self.transformer.position_bias, RelativeGrid)
        if on_grid and (self.prefix != 1 or not self.class_token):
            raise UserError(
                "transformer.position_bias = @relative_grid() is for patches after one "
                "class token; expected vit.class_token without other tokens."
            )
        if self.distillation_head and not (
            self.distillation_token and self.num_classes
        ):
            raise UserError(
                "vit.distillation_head = True needs vit.distillation_token and "
                "vit.num_classes."
            )
        super().__post_init__()

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches of an image of image_size."""
        return grid_of(pair(self.image_size), pair(self.patch_size))

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches."""
        return self.class_token + self.distillation_token + self.registers

    def setup(self):
        """Declares the submodules."""
        c = self.transformer
        D, std, dtype = c.embed_dim, c.init_std, c.compute_dtype
        names = ("class_token", "distillation_token")
        self.patches = PatchEmbedding(
            c,
            self.grid,
            pair(self.patch_size),
            self.channels,
            self.positions,
            tuple(name for name in names if getattr(self, name)),
            self.mask_token,
            self.patch_bias,
            self.gin_name,
            self.registers,
            self.interpolation,
        )
        if self.embed_norm:
            self.input_norm = c.make_norm()
        self.stack = Stack(c, final_norm=not self.pooled_norm)
        if self.pooled_norm:
            self.pool_norm = c.make_norm()
        if self.pooling == "attention":
            self.attention_pool = AttentionPooling(c, queries=1, feed_forward=True)
        if self.pooler:
            self.pool = Dense(D, ("embed", None), True, std, dtype)
        if self.num_classes:
            # Zero weights, so that training starts from uniform class probabilities.
            head = Dense(self.num_classes, ("embed", None), True, 0.0, dtype)
            self.classifier = head
        if self.distillation_head:
            self.distillation_classifier = head.clone()

    def __call__(
        self,
        images: Float[Array, "B height width C"],
        masked: Bool[Array, "B N"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """The encoder's hidden vectors and the outputs of the heads.

        Args:
          images: normalized; height and width are multiples of the patch's.
          masked: True for patches to be replaced by the mask token.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return them.

        Returns:
          hidden: [B, T, D] after the final norm, or with pooled_norm before any: class
          and distillation token, then registers, then patches row by row; pooled, where
          there is pooling: [B, D], or [B, 2D] of class token and average; logits:
          float32 [B, num_classes] where there is a classifier, with class_logits and
          distillation_logits where there are two; hidden_states: [layers + 1, B, T, D].
        """
        x = self.patches(images, masked)
        grid = grid_of(images.shape[1:3], pair(self.patch_size))
        return self.encode(x, keys, hidden_states, grid=grid)

    def encode(
        self,
        patches: Float[Array, "B N D"],
        keys: Keys = None,
        hidden_states: bool = False,
        extra: Float[Array, "B S D"] | None = None,
        extra_padding_mask: Bool[Array, "B S"] | None = None,
        grid: Grid | None = None,
    ) -> dict[str, Array]:
        """As `__call__`, from vectors of patches.

        Args:
          patches: vectors of all patches or some, with positions added.
          keys: as in `__call__`.
          hidden_states: likewise.
          extra: vectors of other tokens, appended to the patches; outputs include them.
          extra_padding_mask: False for those of `extra` that no token attends to.
          grid: rows and columns of patches, if these are all of an image; None if they
            are some of them, for which there are no positions on the grid.
        """
        c = self.transformer
        x = self.patches.with_prefix(patches)
        padding_mask = None
        if extra is not None:
            before = jnp.ones(x.shape[:2], bool)
            padding_mask = jnp.concatenate([before, extra_padding_mask], axis=1)
            x = jnp.concatenate([x, extra.astype(x.dtype)], axis=1)
            x = constrain(x, "batch", "length", "act_embed")
        if self.embed_norm:
            x = self.input_norm(x)
        x = dropout(x, c.dropout, fold_keys(keys, c.num_layers))
        mask = self_attention(False, None, padding_mask)
        patches = None if grid is None else PatchGrid(grid, self.grid, self.prefix)
        at = jnp.arange(x.shape[1])[None]
        context = Context(at, mask, keys=keys, patches=patches)
        out = self.stack(x, context, None, hidden_states)
        hidden = out["hidden"]
        return outputs(out) | self.head(hidden, keys)

    def head(
        self, hidden: Float[Array, "B T D"], keys: Keys = None
    ) -> dict[str, Array]:
        """`pooled` and the logits of hidden vectors."""
        if self.pooling == "none":
            return {}
        pooled = self._pooled(hidden, keys)
        if self.pooled_norm:
            pooled = self.pool_norm(pooled)
        if self.pooler:
            pooled = jnp.tanh(self.pool(pooled))
        out = {"pooled": pooled}
        if self.num_classes:
            out["logits"] = self.classifier(pooled).astype(jnp.float32)
        if self.distillation_head:
            other = self.distillation_classifier(hidden[:, 1]).astype(jnp.float32)
            out |= {"class_logits": out["logits"], "distillation_logits": other}
            out["logits"] = (out["class_logits"] + other) / 2
        return out

    def _pooled(self, hidden: Array, keys: Keys) -> Array:
        if self.pooling == "attention":
            at_pool = fold_keys(keys, self.transformer.num_layers + 1)
            return self.attention_pool(hidden, at_pool)[:, 0]
        first = hidden[:, 0]
        if self.pooling == "class_token":
            return first
        average = hidden[:, self.prefix :].mean(1)
        if self.pooling == "average":
            return average
        return jnp.concatenate([first, average], axis=-1)

    def train_flops_per_image(self, params, image_size: Grid | None = None) -> float:
        """Matrix FLOPs of a training step for each image of this size."""
        c = self.transformer
        rows, columns = grid_of(
            image_size or pair(self.image_size), pair(self.patch_size)
        )
        N = rows * columns
        T = N + self.prefix
        each = 6.0 * matmul_parameters(params["stack"], c) + attention_flops(
            c, T, "full"
        )
        pool = 0.0
        if self.pooling == "attention":
            pool = pooling_flops(params["attention_pool"], c, T)
        others = ("patches", "stack", "attention_pool")
        heads = {k: v for k, v in params.items() if k not in others}
        return (
            T * each
            + 6.0 * N * params["patches"]["kernel"].size
            + 6.0 * matmul_parameters(heads, c)
            + pool
        )


def check_image_encoder(image: ViT, owner: str, pooled: bool = True) -> None:
    """Raises UserError for a ViT with heads that the model `owner` does not read.

    Args:
      image: the ViT.
      owner: gin name of the model that contains it.
      pooled: whether the owner reads the ViT's `pooled`; else it pools by itself.
    """
    if image.num_classes:
        raise UserError(
            f"vit.num_classes = {image.num_classes}, but @{owner}() does not read "
            "class logits; expected 0."
        )
    if pooled == (image.pooling == "none"):
        expected = "another" if pooled else "'none', as it pools by itself"
        raise UserError(
            f"vit.pooling = {image.pooling!r} in @{owner}(); expected {expected}."
        )
