"""Decoder-only language models: GPT-2 (Radford et al. 2019) to DeepSeek-V3 (2024)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fmjax.configurable import configurable
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.layers.attention_mask import cached_self_attention, padding_mask_of
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.disentangled import check_decoder
from fmjax.models.layers.dropout import Keys
from fmjax.models.layers.embeddings import Embedding
from fmjax.models.layers.inputs import (
    InputEmbedding,
    Positions,
    check_positions,
    outputs,
)
from fmjax.models.layers.language_head import LanguageHead
from fmjax.models.layers.text_inputs import Text, TextInputs, count_positions
from fmjax.models.layers.text_model import TextModel, decoder_mask, embed_text
from fmjax.models.layers.token_heads import TokenHeads, last_vectors
from fmjax.models.layers.transformer import Cache, Context, Stack, empty_cache
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.layers.virtual_tokens import (
    behind_prompt,
    moved_by,
    without_prompt,
)


@configurable("gpt")
class GPT(TextModel):
    """A causal (decoder-only) language model.

    Attributes:
      transformer: sizes and choices of the stack.
      vocab_size: V; ids at and above it are never predicted. 0, as in configs that do
        not bind it: that of the data's tokenizer, see `fmjax.training.vocab_size`.
      max_length: the longest sequence; learned positions have as many rows.
      positions: vectors added for each position: "learned" (GPT-2), "sinusoidal", or
        "none" with transformer.rotary or transformer.position_bias.
      position_offset: row of position 0 in the learned table (OPT: 2).
      positions_from_padding_mask: whether positions, given a padding mask, count only
        tokens that are not padding (OPT).
      embed_norm: whether token vectors are normalized (BLOOM).
      embed_scale: whether they are multiplied by sqrt(D) (Gemma).
      embed_dim: width of token vectors and of the head's input, projected to and from
        the stack's width D (OPT 350M); None for D, without projections.
      tie_embeddings: whether the head is the transposed embedding table (Press & Wolf
        2017).
      head_bias: whether the logits have a bias (GPT-J, Phi).
      logits_softcap: logits x become cap · tanh(x / cap) (Gemma 2); None leaves them.
      num_classes: classes of a classifier that reads the last token of a text, 1 for a
        score, as of reward models; None for no classifier.
      token_classes: labels of a classifier of every token; None for no classifier.
      spans: whether there is a head for the first and last token of an answer.
      vocab_multiple: the tables are padded to a multiple of this, so that they shard.
    """

    transformer: TransformerConfig
    vocab_size: int
    max_length: int
    positions: Positions = "learned"
    position_offset: int = 0
    positions_from_padding_mask: bool = False
    embed_norm: bool = False
    embed_scale: bool = False
    embed_dim: int | None = None
    tie_embeddings: bool = True
    head_bias: bool = False
    logits_softcap: float | None = None
    num_classes: int | None = None
    token_classes: int | None = None
    spans: bool = False
    vocab_multiple: int = 128

    def __post_init__(self):
        super().__post_init__()
        check_positions(self, "transformer")
        check_decoder(self.transformer.position_bias, "gpt.transformer")

    def setup(self):
        """Declares the submodules."""
        c = self.transformer
        rows, dtype = self.padded_vocab_size, c.compute_dtype
        width = self.embed_dim or c.embed_dim
        self.tokens = Embedding(rows, width, "vocab", c.init_std, dtype)
        if self._projects:
            self.project_in = Dense(
                c.embed_dim, (None, "embed"), False, c.init_std, dtype
            )
            self.project_out = Dense(width, ("embed", None), False, c.init_std, dtype)
        self.inputs = InputEmbedding(
            c,
            self.max_length,
            self.positions,
            self.position_offset,
            norm=self.embed_norm,
            scale=self.embed_scale,
        )
        self.stack = Stack(c)
        self.language_head = LanguageHead(
            self.vocab_size,
            rows,
            self.tie_embeddings,
            c.init_std,
            dtype,
            bias=self.head_bias,
            scale=c.multipliers.logits,
            softcap=self.logits_softcap,
        )
        if self.num_classes is not None:
            axes = ("embed", None)
            self.classifier = Dense(self.num_classes, axes, False, c.init_std, dtype)
        if self.token_classes is not None or self.spans:
            self.token_heads = TokenHeads(c, self.token_classes, self.spans)

    def __call__(
        self, text: Text, keys: Keys = None, hidden_states: bool = False
    ) -> dict[str, Array]:
        """Logits of the next token at every position.

        Args:
          text: tokens [B, T], or a `TextInputs`.
          keys: one key per example for dropout; None in evaluation.
          hidden_states: whether to return them.

        Returns:
          logits: float32 [B, T, V], without vocabulary padding; hidden: [B, T, D],
          after the final norm; hidden_states: [layers + 1, B, T, D], the stack's input
          and every block's output, the last one after the final norm; class_logits:
          float32 [B, num_classes], token_logits and span_logits, see `TokenHeads`, each
          where the model has that head.
        """
        out = self.hidden(text, None, keys, hidden_states)
        logits = self.head(out["hidden"])[..., : self.vocab_size]
        return outputs(out) | {"logits": logits}

    def hidden(
        self,
        text: Text,
        cache: Cache | None = None,
        keys: Keys = None,
        hidden_states: bool = False,
    ) -> dict[str, Array | Cache | None]:
        """Everything below the head; see `__call__`.

        Args:
          text: with a cache its positions are the slots that are written, counted from
            the end of a prompt.
          cache: of earlier tokens, from `empty_cache` or `read_prompt`; None to read
            the text alone.
          keys: as in `__call__`.
          hidden_states: likewise.

        Returns:
          hidden: [B, T, D], after the final norm; cache: the given cache with these
          tokens written at their positions, or None; router: of a mixture of experts,
          [layers, B] each, else empty; hidden_states if requested.
        """
        text, prompt = self._read(text), self._prompt()
        count, prefix = 0 if prompt is None else len(prompt), self._prefix("stack")
        if cache is None:
            self._check_room(text, count + prefix)
            whole = behind_prompt(text, count)
        else:
            whole, prompt = moved_by(text, count), None

        def tokens(ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
            return self._embedded(self.tokens(ids))

        x = embed_text(tokens, self.inputs, whole, keys, prompt, prefix)
        context = Context(whole.positions, decoder_mask(whole, cache, count), keys=keys)
        out = self.stack(x, context, cache, hidden_states)
        if cache is None:
            out = without_prompt(out, count)
            out |= self._text_heads(out["hidden"], text, keys)
        return out

    def read_prompt(self, cache: Cache) -> Cache:
        """The cache with the virtual tokens of a prompt in its first slots.

        Args:
          cache: from `empty_cache`, with room for them.
        """
        prompt = self._prompt()
        if prompt is None:
            return cache
        rows, positions = cache.self_attention.k.shape[1], jnp.arange(len(prompt))[None]
        x = jnp.broadcast_to(prompt, (rows, *prompt.shape))
        x = self.inputs(x, positions + self._prefix("stack"), None, None)
        context = Context(positions, cached_self_attention(positions))
        return self.stack(x, context, cache)["cache"]

    def _prompt(self) -> Float[Array, "n D"] | None:
        """Vectors before those of tokens; None for none."""
        prompt = self.tokens.prompt()
        return None if prompt is None else self._embedded(prompt)

    def _embedded(self, vectors: Float[Array, "... E"]) -> Float[Array, "... D"]:
        """Rows of the table at the stack's width."""
        return self.project_in(vectors) if self._projects else vectors

    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T padded_V"]:
        """Logits over the padded vocabulary, float32; padding gets -1e30."""
        return self.language_head(self._projected(hidden), self.tokens.table)

    def _text_heads(
        self, hidden: Float[Array, "B T D"], text: TextInputs, keys: Keys
    ) -> dict[str, Array]:
        found, hidden = {}, self._projected(hidden)
        if self.num_classes is not None:
            mask = padding_mask_of(text.segment_ids, text.padding_mask)
            scores = self.classifier(last_vectors(hidden, mask))
            found["class_logits"] = scores.astype(jnp.float32)
        if self.token_classes is not None or self.spans:
            found |= self.token_heads(hidden, keys)
        return found

    def _projected(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        """The input of heads."""
        return self.project_out(hidden) if self._projects else hidden

    @property
    def _projects(self) -> bool:
        return self.embed_dim not in (None, self.transformer.embed_dim)

    def _default_positions(self, text: TextInputs) -> Int[Array, "#B T"]:
        if self.positions_from_padding_mask and text.padding_mask is not None:
            return count_positions(text.padding_mask)
        return super()._default_positions(text)

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """A cache for `length` positions of every row."""
        return empty_cache(self.transformer, batch_size, length)

    def train_flops_per_token(
        self, params, length: int, predicted: float = 1.0
    ) -> float:
        """Matrix FLOPs of a training step for each token (PaLM, appendix B).

        6 for every weight of a matrix product (none for tables that are only looked
        up), and the products of attention, counted in full although causal.

        Args:
          params: the parameters, or their shapes.
          length: tokens of a sequence.
          predicted: share of the tokens that the language head reads.
        """
        weights = matmul_parameters(params, self.transformer)
        if self.tie_embeddings:
            weights += predicted * params["tokens"]["table"].size
        else:
            weights -= (1 - predicted) * params["language_head"]["kernel"].size
        return 6.0 * weights + attention_flops(self.transformer, length)
