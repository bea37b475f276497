"""SimCLR (Chen et al. 2020): an image encoder with a projection head for contrast."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.configurable import configurable
from fmjax.errors import require
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.l2_normalize import l2_normalize
from fmjax.models.vision.vit import ViT, check_image_encoder


@configurable("simclr")
class SimCLR(nn.Module):
    """Embeddings of images for a contrastive loss (section 2.1).

    After pretraining the encoder is kept: other tasks do better with its `pooled` than
    with the output of the projection head (section 4.2).

    Attributes:
      encoder: the image encoder, without a classifier.
      embed_dim: E, width of the embeddings.
      head_dim: width of the projection head's hidden layer; None means the encoder's.
    """

    encoder: ViT
    embed_dim: int = 128
    head_dim: int | None = None

    def __post_init__(self):
        require(self, "embed_dim", self.embed_dim >= 1, "at least 1")
        width = self.head_dim
        require(self, "head_dim", width is None or width >= 1, "at least 1, or None")
        check_image_encoder(self.encoder, self.gin_name)
        super().__post_init__()

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Height and width of images in pixels; one number where they are equal."""
        return self.encoder.image_size

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.encoder.channels

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B height width C"],
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """The encoder's outputs, and image_embeddings: float32 [B, E], of unit length.

        Args:
          images: normalized.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return them.
        """
        c = self.encoder.transformer
        out = self.encoder(images, keys=keys, hidden_states=hidden_states)
        width = self.head_dim or c.embed_dim
        std, dtype = c.init_std, c.compute_dtype
        inner = Dense(width, ("embed", "mlp"), True, std, dtype, name="head_in")
        outer = Dense(self.embed_dim, ("mlp", None), False, std, dtype, name="head_out")
        embeddings = l2_normalize(outer(nn.relu(inner(out["pooled"]))))
        return out | {"image_embeddings": embeddings}

    def embed_views(
        self, views: Float[Array, "B 2 height width C"], keys: Keys = None
    ) -> Float[Array, "B 2 E"]:
        """Embeddings of both views, with different dropout for each."""
        pair = [
            self(views[:, i], fold_keys(keys, i))["image_embeddings"] for i in range(2)
        ]
        return jnp.stack(pair, axis=1)

    def train_flops_per_image(self, params, image_size=None) -> float:
        """Matrix FLOPs of a training step for each view."""
        head = params["head_in"]["kernel"].size + params["head_out"]["kernel"].size
        encoder = self.encoder.train_flops_per_image(params["encoder"], image_size)
        return encoder + 6.0 * head
