"""Contrastive captioners (CoCa, Yu et al. 2022): two towers, one of which writes."""

import jax
from jaxtyping import Array, Bool, Float, Int

from fmjax.configurable import configurable
from fmjax.errors import UserError
from fmjax.models.layers.attention_pooling import AttentionPooling, pooling_flops
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.inputs import outputs
from fmjax.models.layers.patches import grid_of, pair
from fmjax.models.layers.transformer import Cache
from fmjax.models.multimodal.caption_decoder import CaptionDecoder
from fmjax.models.multimodal.clip import CLIP
from fmjax.models.vision.vit import ViT


@configurable("coca")
class CoCa(CLIP):
    """CLIP's embeddings, and captions by the same decoder, of one forward pass.

    Attentional poolers, in cascade as in the paper (section 3.2 and its ablation): the
    queries for captions attend to all vectors of the image, and give what the decoder
    attends to; the query for contrast attends to what those found. Each is one layer of
    multi-head attention and a norm; its heads are as many as the image tower's, of
    which the paper says nothing.

    Attributes:
      image: the tower of images, which leaves pooling to this model.
      text: the decoder, both halves.
      contrastive_queries: whose mean stands for the image.
      caption_queries: Q, vectors of an image that captions are written from.

    The other fields are those of `CLIP`.
    """

    image: ViT
    text: CaptionDecoder
    contrastive_queries: int = 1
    caption_queries: int = 256

    reads_pooled = False
    # A caption is of its row's image.
    rows_apart = False

    def __post_init__(self):
        for name in ("contrastive_queries", "caption_queries"):
            if getattr(self, name) < 1:
                raise UserError(f"coca.{name} = {getattr(self, name)} is below 1.")
        super().__post_init__()

    @property
    def max_length(self) -> int:
        """Tokens that the decoder can read, those before a text included."""
        return self.text.positions

    @property
    def start_id(self) -> int | None:
        """What is read before a caption's first token; None: the caption's own BOS."""
        return self.text.start_id

    def setup(self):
        """Declares the parts."""
        super().setup()
        c = self.image.transformer
        self.caption_pool = AttentionPooling(c, self.caption_queries, False)
        self.contrastive_pool = AttentionPooling(c, self.contrastive_queries, False)

    def __call__(
        self,
        images: Float[Array, "B height width C"] | None = None,
        tokens: Int[Array, "B T"] | None = None,
        padding_mask: Bool[Array, "B T"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Embeddings of what is given, and of both together what captions go on with.

        Args:
          images: normalized.
          tokens: ids of texts.
          padding_mask: False for padding.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to give those of all three stacks.

        Returns:
          What `CLIP` gives, image_pooled being that of the query for contrast and
          text_hidden that of the decoder's first half; image_encoder_hidden: [B, Q, D],
          what cross-attention of the second half reads. Given both images and texts, N
          being T, or T + 1 with a start_id: hidden: [B, N, D] of the second half, after
          the final norm, and logits: float32 [B, N, V] of the next token.
        """
        out = self.hidden(images, tokens, padding_mask, keys, hidden_states)
        if "hidden" in out:
            out["logits"] = self.head(out["hidden"])[..., : self.vocab_size]
        return {n: x for n, x in outputs(out).items() if n != "text_router"}

    def hidden(
        self,
        images: Float[Array, "B height width C"] | None = None,
        tokens: Int[Array, "B T"] | None = None,
        padding_mask: Bool[Array, "B T"] | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """Everything below the head; see `__call__`."""
        out = self.scaling()
        if images is not None:
            out |= self.embed_images(images, fold_keys(keys, 0), hidden_states)
        if tokens is not None:
            out |= self.embed_texts(
                tokens, padding_mask, fold_keys(keys, 1), hidden_states
            )
        if images is None or tokens is None:
            return out
        seen = self.text.look(
            out["text_hidden"],
            out["image_encoder_hidden"],
            padding_mask,
            fold_keys(keys, 2),
            hidden_states,
        )
        return out | {name: x for name, x in seen.items() if name != "cache"}

    def see(
        self,
        images: Float[Array, "B height width C"],
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array]:
        """What the image's tower and the poolers give."""
        out = super().see(images, keys, hidden_states)
        encoder_hidden = self.caption_pool(out["hidden"], None)
        pooled = self.contrastive_pool(encoder_hidden, None).mean(1)
        return out | {"encoder_hidden": encoder_hidden, "pooled": pooled}

    def decode(
        self,
        tokens: Int[Array, "B T"],
        encoder_hidden: Float[Array, "B Q D"] | None,
        positions: Int[Array, "B T"],
        cache: tuple[Cache, Cache],
    ) -> tuple[Float[Array, "B T D"], tuple[Cache, Cache]]:
        """The decoder below its head, with a cache; see `CaptionDecoder.extend`."""
        return self.text.extend(tokens, encoder_hidden, positions, cache)

    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T padded_V"]:
        """Logits over the padded vocabulary, float32; padding gets -1e30."""
        return self.text.head(hidden)

    def empty_cache(self, batch_size: int, length: int) -> tuple[Cache, Cache]:
        """Caches of the decoder's halves, for `length` positions of every row."""
        return self.text.empty_cache(batch_size, length, self.caption_queries)

    def train_flops_per_pair(
        self, params, image_size: tuple[int, int], length: int
    ) -> float:
        """Matrix FLOPs of a training step for an image and its text."""
        c, Q = self.image.transformer, self.caption_queries
        rows, columns = grid_of(image_size, pair(self.image.patch_size))
        vectors = rows * columns + self.image.prefix
        projections = [
            leaf.size
            for name in ("image_projection", "text_projection")
            for leaf in jax.tree.leaves(params.get(name, {}))
        ]
        return (
            self.image.train_flops_per_image(params["image"], image_size)
            + pooling_flops(params["caption_pool"], c, vectors)
            + pooling_flops(params["contrastive_pool"], c, Q)
            + self.text.train_flops_per_text(params["text"], length, Q)
            + 6.0 * sum(projections)
        )
