"""Contrastive captioners (CoCa, Yu et al. 2022): CLIP whose text encoder decodes."""

from typing import ClassVar

from jaxtyping import Array, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import require
from fmjax.models.layers.attention_pooling import AttentionPooling, pooling_flops
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.inputs import outputs
from fmjax.models.layers.patches import grid_of, pair
from fmjax.models.layers.text_inputs import Text, TextArguments, TextInputs
from fmjax.models.layers.transformer import Cache
from fmjax.models.multimodal.caption_decoder import CaptionDecoder
from fmjax.models.multimodal.clip import CLIP
from fmjax.models.vision.vit import ViT


@configurable("coca")
class CoCa(CLIP):
    """CLIP's embeddings and a caption's logits from one forward pass.

    Two attentional poolers are in cascade, as in the paper (section 3.2 and its
    ablation): the caption queries attend to all vectors of the image, and the decoder
    attends to their outputs; the contrastive queries attend to those outputs as well.
    Each pooler is one layer of multi-head attention and a norm. It has as many heads as
    the image encoder; the paper does not state the number.

    Attributes:
      image: the image encoder, with vit.pooling = "none".
      text: the decoder, whose unimodal stack embeds texts.
      contrastive_queries: queries whose mean output embeds the image.
      caption_queries: Q, vectors of an image that the decoder attends to.

    The other fields are those of `CLIP`.
    """

    image: ViT
    text: CaptionDecoder
    contrastive_queries: int = 1
    caption_queries: int = 256

    text_arguments: ClassVar[TextArguments] = CaptionDecoder.text_arguments
    reads_pooled = False
    # Row i of the texts is the caption of image i.
    rows_apart = False

    def __post_init__(self):
        for name in ("contrastive_queries", "caption_queries"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        super().__post_init__()

    @property
    def max_length(self) -> int:
        """The most tokens that the decoder reads, start_id included."""
        return self.text.positions

    @property
    def start_id(self) -> int | None:
        """Id that is put before a caption; None: it begins with a BOS of its own."""
        return self.text.start_id

    def setup(self):
        """Declares the submodules."""
        super().setup()
        c = self.image.transformer
        self.caption_pool = AttentionPooling(c, self.caption_queries, False)
        self.contrastive_pool = AttentionPooling(c, self.contrastive_queries, False)

    def __call__(
        self,
        images: Float[Array, "B height width C"] | None = None,
        text: Text | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Embeddings of images, captions or both; of both also the captions' logits.

        Args:
          images: normalized.
          text: captions, tokens [B, T] or a `TextInputs` with a padding_mask.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return those of all three stacks.

        Returns:
          What `CLIP` does, image_pooled being the mean of the contrastive pooler and
          text_hidden the unimodal stack's; image_encoder_hidden: [B, Q, D], the caption
          pooler's output. Given both inputs, with N = T, or T + 1 with a start_id:
          hidden: [B, N, D] of the multimodal stack, after the final norm, and logits:
          float32 [B, N, V] of the next token.
        """
        out = self.hidden(images, text, keys, hidden_states)
        if "hidden" in out:
            out["logits"] = self.head(out["hidden"])[..., : self.vocab_size]
        return {n: x for n, x in outputs(out).items() if n != "text_router"}

    def hidden(
        self,
        images: Float[Array, "B height width C"] | None = None,
        text: Text | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Everything below the head; see `__call__`."""
        out = self.embed(images, text, keys, hidden_states)
        if images is None or text is None:
            return out
        seen = self.text.cross_attend(
            out["text_hidden"],
            out["image_encoder_hidden"],
            TextInputs.of(text).padding_mask,
            fold_keys(keys, 2),
            hidden_states,
        )
        return out | {name: x for name, x in seen.items() if name != "cache"}

    def encode_images(
        self,
        images: Float[Array, "B height width C"],
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """The outputs of the image encoder and of the poolers."""
        out = super().encode_images(images, keys, hidden_states)
        encoder_hidden = self.caption_pool(out["hidden"], None)
        pooled = self.contrastive_pool(encoder_hidden, None).mean(1)
        return out | {"encoder_hidden": encoder_hidden, "pooled": pooled}

    def decode(
        self,
        tokens: Int[Array, "B T"],
        encoder_hidden: Float[Array, "B Q E"] | None,
        positions: Int[Array, "B T"],
        cache: tuple[Cache, Cache],
    ) -> tuple[Float[Array, "B T D"], tuple[Cache, Cache]]:
        """The decoder below its head, with a cache; see `CaptionDecoder.decode`."""
        return self.text.decode(tokens, encoder_hidden, positions, cache)

    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T padded_V"]:
        """Logits over the padded vocabulary, float32; padding gets -1e30."""
        return self.text.head(hidden)

    def empty_cache(self, batch_size: int, length: int) -> tuple[Cache, Cache]:
        """Caches of the decoder's stacks, for `length` positions of every row."""
        return self.text.empty_cache(batch_size, length, self.caption_queries)

    def train_flops_per_pair(
        self, params, image_size: tuple[int, int], length: int
    ) -> float:
        """Matrix FLOPs of a training step for an image and its text."""
        c, Q = self.image.transformer, self.caption_queries
        rows, columns = grid_of(image_size, pair(self.image.patch_size))
        vectors = rows * columns + self.image.prefix
        return (
            self.image.train_flops_per_image(params["image"], image_size)
            + pooling_flops(params["caption_pool"], c, vectors)
            + pooling_flops(params["contrastive_pool"], c, Q)
            + self.text.train_flops_per_text(params["text"], length, Q)
            + self._projection_flops(params)
        )
