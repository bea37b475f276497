"""Image and text encoders with one embedding space: CLIP, SigLIP, LiT."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.logical_axes import constant_init
from fmjax.models.multimodal.text_encoder import TextEncoder
from fmjax.models.vision.vit import ViT, check_tower


@configurable("clip")
class CLIP(nn.Module):
    """Embeddings of images and texts, of unit length (Radford et al. 2021).

    Attributes:
      image: the image encoder; its `pooled` vector is embedded.
      text: the text encoder; likewise.
      embed_dim: E, width that an image's vector is projected to; None takes it as it
        is, and as wide as the text's (SigLIP).
      text_bias: whether the text's projection has an offset (SigLIP).
      scale: multiplies cosines at the start: the inverse temperature.
      max_scale: whatever is learned, cosines are multiplied by no more (CLIP, section
        2.5); None sets no limit (SigLIP).
      bias: added to the products at the start, and learned (SigLIP: -10); None for
        none.
    """

    image: ViT
    text: TextEncoder
    embed_dim: int | None = 512
    text_bias: bool = False
    scale: float = 1 / 0.07
    max_scale: float | None = 100.0
    bias: float | None = None

    # Whether the image's tower pools its vectors.
    reads_pooled = True
    # Whether a call may have more images than texts, or fewer.
    rows_apart = True

    def __post_init__(self):
        name = self.gin_name
        if self.embed_dim is not None and self.embed_dim < 1:
            raise UserError(f"{name}.embed_dim = {self.embed_dim} is below 1.")
        most = math.inf if self.max_scale is None else self.max_scale
        if not 0 < self.scale <= most:
            raise UserError(
                f"{name}.scale = {self.scale}: expected 0 < x ≤ {name}.max_scale = "
                f"{self.max_scale}."
            )
        check_tower(self.image, name, self.reads_pooled)
        super().__post_init__()

    @property
    def vocab_size(self) -> int:
        """V, the vocabulary size of the text encoder."""
        return self.text.vocab_size

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Height and width of images in pixels; one number where they are equal."""
        return self.image.image_size

    @property
    def width(self) -> int:
        """E, of both embeddings."""
        return self.embed_dim or self.image.transformer.embed_dim

    def setup(self):
        """Declares the parts."""
        image, text = self.image.transformer, self.text.transformer
        names = ("embed", None)
        if self.embed_dim is not None:
            self.image_projection = Dense(
                self.width, names, False, image.init_std, image.compute_dtype
            )
        self.text_projection = Dense(
            self.width, names, self.text_bias, text.init_std, text.compute_dtype
        )

        start = math.log(self.scale)
        self.log_scale = self.param("log_scale", constant_init(start), ())
        if self.bias is not None:
            self.logit_bias = self.param("logit_bias", constant_init(self.bias), ())

    def __call__(
        self,
        images: Float[Array, "B height width C"] | None = None,
        tokens: Int[Array, "texts T"] | None = None,
        padding_mask: Bool[Array, "texts T"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Embeddings of what is given; of images and texts there may be other numbers.

        Args:
          images: normalized.
          tokens: ids of texts.
          padding_mask: False for padding.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to give those of both towers.

        Returns:
          image_embeddings, text_embeddings: float32 [B, E], of unit length; with
          image_pooled, text_pooled [B, D], image_hidden, text_hidden [B, N, D] and
          image_hidden_states, text_hidden_states what the towers give; of either side
          where it is asked for. logit_scale, and logit_bias if there is one: scalars.
          Given both, logits: float32 [B, texts], of each image with each text.
        """
        out = self.scaling()
        if images is not None:
            out |= self.embed_images(images, fold_keys(keys, 0), hidden_states)
        if tokens is not None:
            out |= self.embed_texts(
                tokens, padding_mask, fold_keys(keys, 1), hidden_states
            )
        if images is not None and tokens is not None:
            products = out["image_embeddings"] @ out["text_embeddings"].T
            out["logits"] = out["logit_scale"] * products + out.get("logit_bias", 0.0)
        return out

    def embed_images(
        self,
        images: Float[Array, "B height width C"],
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """image_embeddings and what the tower gives."""
        out = self.see(images, keys, hidden_states)
        vector = out["pooled"]
        if self.embed_dim is not None:
            vector = self.image_projection(vector)
        given = {f"image_{name}": x for name, x in out.items()}
        return given | {"image_embeddings": l2_normalize(vector)}

    def see(
        self,
        images: Float[Array, "B height width C"],
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """What the tower gives of images."""
        return self.image(images, keys=keys, hidden_states=hidden_states)

    def embed_texts(
        self,
        tokens: Int[Array, "B T"],
        padding_mask: Bool[Array, "B T"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """text_embeddings and what the tower gives."""
        out = self.text(tokens, padding_mask, keys, hidden_states)
        given = {f"text_{name}": x for name, x in out.items()}
        vector = self.text_projection(out["pooled"])
        return given | {"text_embeddings": l2_normalize(vector)}

    def scaling(self) -> dict[str, Float[Array, ""]]:
        """logit_scale, never above max_scale, and logit_bias where there is one."""
        log_scale = self.log_scale.astype(jnp.float32)
        if self.max_scale is not None:
            # Its gradient stays, so that it can fall again.
            above = jnp.maximum(log_scale - math.log(self.max_scale), 0.0)
            log_scale = log_scale - jax.lax.stop_gradient(above)
        out = {"logit_scale": jnp.exp(log_scale)}
        if self.bias is not None:
            out["logit_bias"] = self.logit_bias.astype(jnp.float32)
        return out

    def project_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """Parameters after an update, their logit scale never above max_scale."""
        if self.max_scale is None:
            return params
        most = math.log(self.max_scale)
        # A frozen leaf is an empty tree.
        scale = jax.tree.map(lambda x: jnp.minimum(x, most), params["log_scale"])
        return params | {"log_scale": scale}

    def train_flops_per_pair(
        self, params, image_size: tuple[int, int], length: int
    ) -> float:
        """Matrix FLOPs of a training step for an image and its text."""
        projections = [
            params[name]["kernel"].size
            for name in ("image_projection", "text_projection")
            if name in params
        ]
        return (
            self.image.train_flops_per_image(params["image"], image_size)
            + self.text.train_flops_per_text(params["text"], length)
            + 6.0 * sum(projections)
        )


def l2_normalize(x: Float[Array, "... E"]) -> Float[Array, "... E"]:
    """x / ‖x‖ in float32; a vector of zeros stays one."""
    x = x.astype(jnp.float32)
    squares = (x * x).sum(-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squares, 1e-24))
