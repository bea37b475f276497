"""Image and text encoders with one embedding space: CLIP, SigLIP, LiT."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.configurable import configurable
from fmjax.errors import require
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.l2_normalize import l2_normalize
from fmjax.models.layers.logical_axes import constant_init
from fmjax.models.layers.text_inputs import Text, TextArguments
from fmjax.models.multimodal.text_encoder import TextEncoder
from fmjax.models.vision.vit import ViT, check_image_encoder


@configurable("clip")
class CLIP(nn.Module):
    """Embeddings of images and texts, of unit length (Radford et al. 2021).

    Attributes:
      image: the image encoder; its `pooled` vector is projected.
      text: the text encoder; likewise.
      embed_dim: E, width of the embeddings; None: the image encoder's, whose vector is
        then not projected (SigLIP).
      text_bias: whether the projection of texts has a bias (SigLIP).
      scale: initial value of the factor of the cosines, the inverse temperature.
      max_scale: upper bound of the learned factor (CLIP, section 2.5); None for no
        bound (SigLIP).
      bias: initial value of a learned bias of the logits (SigLIP: -10); None for no
        bias.
    """

    image: ViT
    text: TextEncoder
    embed_dim: int | None = 512
    text_bias: bool = False
    scale: float = 1 / 0.07
    max_scale: float | None = 100.0
    bias: float | None = None

    text_arguments: ClassVar[TextArguments] = TextEncoder.text_arguments
    # Whether the image encoder pools its vectors, or this model does.
    reads_pooled = True
    # Whether a call may have more images than texts, or fewer.
    rows_apart = True

    def __post_init__(self):
        name, width = self.gin_name, self.embed_dim
        require(self, "embed_dim", width is None or width >= 1, "at least 1, or None")
        most = math.inf if self.max_scale is None else self.max_scale
        bounds = f"0 < x ≤ {name}.max_scale = {self.max_scale}"
        require(self, "scale", 0 < self.scale <= most, bounds)
        check_image_encoder(self.image, name, self.reads_pooled)
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
        """E, width of both embeddings."""
        return self.embed_dim or self.image.transformer.embed_dim

    def setup(self):
        """Declares the submodules."""
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
        text: Text | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Embeddings of images, texts or both; their numbers may differ.

        Args:
          images: normalized.
          text: tokens [texts, T], or a `TextInputs` with a padding_mask.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return those of both encoders.

        Returns:
          image_embeddings, text_embeddings: float32 [B, E], of unit length; with
          image_pooled, text_pooled [B, D], image_hidden, text_hidden [B, N, D] and
          image_hidden_states, text_hidden_states of the encoders; each where its input
          is given. logit_scale, and logit_bias if there is one: scalars. Given both
          inputs, logits: float32 [B, texts], of each image with each text.
        """
        out = self.embed(images, text, keys, hidden_states)
        if images is not None and text is not None:
            products = out["image_embeddings"] @ out["text_embeddings"].T
            out["logits"] = out["logit_scale"] * products + out.get("logit_bias", 0.0)
        return out

    def embed(
        self,
        images: Float[Array, "B height width C"] | None,
        text: Text | None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """What `__call__` returns, without the logits."""
        out = self.scaling()
        if images is not None:
            out |= self.embed_images(images, fold_keys(keys, 0), hidden_states)
        if text is not None:
            out |= self.embed_texts(text, fold_keys(keys, 1), hidden_states)
        return out

    def embed_images(
        self,
        images: Float[Array, "B height width C"],
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """image_embeddings, and the image encoder's outputs as image_…."""
        out = self.encode_images(images, keys, hidden_states)
        vector = out["pooled"]
        if self.embed_dim is not None:
            vector = self.image_projection(vector)
        given = {f"image_{name}": x for name, x in out.items()}
        return given | {"image_embeddings": l2_normalize(vector)}

    def encode_images(
        self,
        images: Float[Array, "B height width C"],
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """The image encoder's outputs."""
        return self.image(images, keys=keys, hidden_states=hidden_states)

    def embed_texts(
        self, text: Text, keys: Keys = None, hidden_states: bool = False
    ) -> dict[str, Array]:
        """text_embeddings, and the text encoder's outputs as text_…."""
        out = self.text(text, keys, hidden_states)
        given = {f"text_{name}": x for name, x in out.items()}
        vector = self.text_projection(out["pooled"])
        return given | {"text_embeddings": l2_normalize(vector)}

    def scaling(self) -> dict[str, Float[Array, ""]]:
        """logit_scale, never above max_scale, and logit_bias where there is one."""
        log_scale = self.log_scale.astype(jnp.float32)
        if self.max_scale is not None:
            # The gradient passes, so that a scale at the bound can fall again.
            above = jnp.maximum(log_scale - math.log(self.max_scale), 0.0)
            log_scale = log_scale - jax.lax.stop_gradient(above)
        out = {"logit_scale": jnp.exp(log_scale)}
        if self.bias is not None:
            out["logit_bias"] = self.logit_bias.astype(jnp.float32)
        return out

    def project_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """Parameters after an update, with the logit scale clipped to max_scale."""
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
        return (
            self.image.train_flops_per_image(params["image"], image_size)
            + self.text.train_flops_per_text(params["text"], length)
            + self._projection_flops(params)
        )

    def _projection_flops(self, params) -> float:
        """Training FLOPs of projecting an image's vector and a text's."""
        names = ("image_projection", "text_projection")
        return 6.0 * sum(params[n]["kernel"].size for n in names if n in params)
